/**
 * Texts for people that name options. Each option is a part of its own, because each interface spells it in its own way:
 * `create: true` in a program, --create on the command line. Pure.
 */
import { inspect } from 'node:util';

/** Characters that a terminal obeys: controls, ends of lines and paragraphs, and marks of the direction of text. */
const obeyed = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu;

const escapes: Readonly<Record<string, string>> = { '\n': '\\n', '\t': '\\t', '\r': '\\r' };

const toOctal = (character: string): string =>
  Array.from(Buffer.from(character), (byte) => `\\${byte.toString(8).padStart(3, '0')}`).join('');

/**
 * Returns the text in one line that does nothing to a terminal. All text from outside passes through here before it is
 * shown: names, command lines, labels, messages of other programs.
 */
export const printable = (shown: string): string => shown.replace(obeyed, (one) => escapes[one] ?? toOctal(one));

/** The same for a JSON document, which stays the same document. */
export const printableJson = (json: string): string =>
  json.replace(obeyed, (one) => (one === '\n' ? one : `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`));

/** An option, with a value if the text gives one. */
export interface OptionPart {
  readonly option: string;
  readonly value?: unknown;
}

/** A command of the command line, which only the command line can spell. */
export interface CommandPart {
  readonly command: string;
}

/** A name of the API that is no option, which only programs can spell: a function, or a property of a result. */
export interface MemberPart {
  readonly member: string;
}

/** The argument of a call, at the start of a sentence: `lowerdir[2]`. */
export interface ArgumentPart {
  readonly argument: string;
}

export type Part = OptionPart | CommandPart | MemberPart | ArgumentPart;

export type Text =
  | string
  | Part
  /** Remedies to choose from. An interface shows only those that it can spell. */
  | { readonly either: readonly Text[] }
  /** A consequence, before the kernel has mounted and after. */
  | { readonly before: Text; readonly after: Text }
  | readonly Text[];

export const option = (name: string, value?: unknown): OptionPart => ({ option: name, value });

export const member = (name: string): MemberPart => ({ member: name });

export const argument = (name: string): ArgumentPart => ({ argument: name });

export const either = (...texts: readonly Text[]): Text => ({ either: texts });

/** A template tag: makes a text of strings and parts. */
export const text = (strings: TemplateStringsArray, ...parts: readonly (Text | number)[]): Text =>
  strings.flatMap((string, i): Text[] => {
    const part = parts[i];
    return part === undefined ? [string] : [string, typeof part === 'number' ? String(part) : part];
  });

/** How an interface spells options. */
export interface Spelling {
  /** Returns undefined for what the interface does not have. */
  readonly spell: (part: Part) => string | undefined;
  /** True if the text is about a mount that has been made all the same. */
  readonly isMounted?: boolean;
}

/** The spelling in programs. */
const inPrograms: Spelling = {
  spell(part) {
    if ('command' in part) return undefined;
    if ('member' in part) return `\`${part.member}\``;
    if ('argument' in part) return `The argument "${part.argument}"`;
    const { option, value } = part;
    if (value === undefined) return `\`${option}\``;
    const shown = Array.isArray(value) ? `[${value.map((item) => inspect(item)).join(', ')}]` : inspect(value);
    return `\`${option}: ${shown}\``;
  },
};

/** `isStrict`: returns undefined for what the interface cannot spell, instead of the spelling in programs. */
function tryRender(source: Text, spelling: Spelling, isStrict: boolean): string | undefined {
  if (typeof source === 'string') return source;
  if ('option' in source || 'command' in source || 'member' in source || 'argument' in source) {
    return spelling.spell(source) ?? (isStrict ? undefined : inPrograms.spell(source));
  }
  if ('before' in source) return tryRender(spelling.isMounted ? source.after : source.before, spelling, isStrict);
  const renderAll = (texts: readonly Text[], strictly: boolean) =>
    texts.map((one) => tryRender(one, spelling, strictly));
  if (!('either' in source)) {
    const parts = renderAll(source, isStrict);
    return parts.includes(undefined) ? undefined : parts.join('');
  }
  const known = [true, isStrict].map((strictly) =>
    renderAll(source.either, strictly).filter((remedy) => remedy !== undefined),
  );
  return known.find(({ length }) => length > 0)?.join(', or ');
}

/** Returns the text with its options spelled as an interface does; what it cannot spell, as in programs. */
export const render = (source: Text, spelling: Spelling = inPrograms): string =>
  printable(tryRender(source, spelling, false) ?? '');

/** Returns the text as a sentence. */
export function sentence(source: Text, spelling?: Spelling): string {
  const rendered = render(source, spelling);
  return `${rendered.charAt(0).toUpperCase()}${rendered.slice(1)}.`;
}
