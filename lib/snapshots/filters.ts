/**
 * containerd's filters: selectors such as `kind==active` or `labels."a.b"~=^x`, of which all in one filter must match.
 * Pure.
 */
import { invalidArgument } from './errors.js';

/** Returns a field's value; undefined if there is none. */
export type Fields = (path: readonly string[]) => string | undefined;
export type Filter = (fields: Fields) => boolean;

type Operator = '==' | '!=' | '~=';

const space = /\p{White_Space}*/uy;
const plainField = /[A-Za-z0-9_]+/y;
/** The first character may be any; the others are those that can be seen. */
const plainValue = /[^.,=!~"/|](?:(?!,)[\p{L}\p{M}\p{N}\p{P}\p{S}])*/uy;
const operator = /[=!~]+/y;

const escapes: Readonly<Record<string, string>> = { a: '\x07', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t', v: '\v' };

/** An escape that stands for a byte, or for a character, in Go's syntax for strings. */
const byteEscape = /x([0-9a-fA-F]{2})|([0-3][0-7]{2})/y;
const characterEscape = /u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})/y;

class Parser {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
    this.#at = text.search(/[\0\ufffd]/);
    if (this.#at >= 0) this.fail('a character that no filter may have');
    this.#at = 0;
  }

  fail(problem: string): never {
    throw invalidArgument(
      undefined,
      `the filter ${JSON.stringify(this.#text)} has ${problem} at character ${this.#at + 1}`,
      'write it as field==value, field!=value, field~=expression or field, with commas between',
    );
  }

  get isAtEnd(): boolean {
    return this.#at >= this.#text.length;
  }

  take(text: string): boolean {
    if (!this.#text.startsWith(text, this.#at)) return false;
    this.#at += text.length;
    return true;
  }

  #match(pattern: RegExp): RegExpExecArray | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text) ?? undefined;
    this.#at += found?.[0].length ?? 0;
    return found;
  }

  field(): string {
    this.#match(space);
    return this.#quoted(['"']) ?? this.#match(plainField)?.[0] ?? this.fail('no field');
  }

  operator(): Operator {
    this.#match(space);
    const start = this.#at;
    const found = this.#match(operator)?.[0];
    if (found === '==' || found === '!=' || found === '~=') return found;
    this.#at = start;
    return this.fail('no operator, which is ==, != or ~=,');
  }

  value(isExpression: boolean): string {
    this.#match(space);
    const quotes = isExpression ? ['"', '/', '|'] : ['"'];
    return this.#quoted(quotes) ?? this.#match(plainValue)?.[0] ?? this.fail('no value');
  }

  #quoted(quotes: readonly string[]): string | undefined {
    const quote = this.#text[this.#at];
    if (quote === undefined || !quotes.includes(quote)) return undefined;
    this.#at++;
    const parts: Buffer[] = [];
    while (!this.take(quote)) {
      if (this.isAtEnd || this.#text[this.#at] === '\n') this.fail('a quote that does not end');
      const character = String.fromCodePoint(this.#text.codePointAt(this.#at) as number);
      this.#at += character.length;
      parts.push(character === '\\' ? this.#escape(quote) : Buffer.from(character));
    }
    return Buffer.concat(parts).toString();
  }

  #escape(quote: string): Buffer {
    const byte = this.#match(byteEscape);
    if (byte !== undefined) return Buffer.of(Number.parseInt(byte[1] ?? byte[2] ?? '', byte[1] === undefined ? 8 : 16));
    const character = this.#match(characterEscape);
    if (character !== undefined) {
      const code = Number.parseInt(character[1] ?? character[2] ?? '', 16);
      return code <= 0x10ffff ? Buffer.from(String.fromCodePoint(code)) : this.fail('an escape that is no character');
    }
    const letter = this.#text[this.#at++] ?? '';
    const plain = letter === '\\' || letter === quote ? letter : escapes[letter];
    return plain === undefined ? this.fail('an unknown escape') : Buffer.from(plain);
  }

  /** Makes an expression; `(?i)` and the like at its start are Go's form of flags. */
  expression(source: string): RegExp {
    const [, flags = '', rest = ''] = /^(?:\(\?([ims]+)\))?(.*)$/s.exec(source) ?? [];
    try {
      return new RegExp(rest, `${flags}u`);
    } catch {
      return this.fail(`an expression that is none, ${JSON.stringify(source)},`);
    }
  }
}

function parseSelector(parser: Parser): Filter {
  const path = [parser.field()];
  while (parser.take('.')) path.push(parser.field());
  if (parser.isAtEnd || parser.take(',')) return (fields) => fields(path) !== undefined;
  const operator = parser.operator();
  const value = parser.value(operator === '~=');
  if (!parser.isAtEnd && !parser.take(',')) parser.fail('something behind the value');
  switch (operator) {
    case '==':
      return (fields) => fields(path) === value;
    case '!=':
      return (fields) => (fields(path) ?? '') !== value;
    default: {
      const expression = parser.expression(value);
      return (fields) => expression.test(fields(path) ?? '');
    }
  }
}

function parse(text: string): Filter {
  if (text === '') return () => true;
  const parser = new Parser(text);
  const selectors: Filter[] = [];
  do selectors.push(parseSelector(parser));
  while (!parser.isAtEnd);
  if (text.endsWith(',')) parser.fail('no field');
  return (fields) => selectors.every((matches) => matches(fields));
}

/** Returns a filter that matches if one of the texts does; without any, one that matches always. */
export function parseFilters(texts: readonly string[]): Filter {
  const filters = texts.map(parse);
  return filters.length === 0 ? () => true : (fields) => filters.some((matches) => matches(fields));
}
