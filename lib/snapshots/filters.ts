/**
 * containerd's filters: selectors such as `kind==active` or `labels."a.b"~=^x`, of which all in one filter must match.
 * Pure.
 */
import { invalidArgument } from './errors.js';

/** Returns a field's value; undefined if there is none. */
export type Fields = (path: readonly string[]) => string | undefined;
export type Filter = (fields: Fields) => boolean;

type Operator = '==' | '!=' | '~=';

const plainField = /[A-Za-z0-9_]+/y;
const plainValue = /[^\s,]+/y;
const operator = /[=!~]+/y;

const escapes: Readonly<Record<string, string>> = { a: '\x07', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t', v: '\v' };

/** The digits of an escape in a quoted text, by its letter: in Go's syntax for strings. */
const numeric: Readonly<Record<string, RegExp>> = {
  x: /[0-9a-fA-F]{2}/y,
  u: /[0-9a-fA-F]{4}/y,
  U: /[0-9a-fA-F]{8}/y,
};

class Parser {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
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

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const [found] = pattern.exec(this.#text) ?? [];
    if (found !== undefined) this.#at += found.length;
    return found;
  }

  field(): string {
    return this.#quoted(['"', "'"]) ?? this.#match(plainField) ?? this.fail('no field');
  }

  operator(): Operator {
    const start = this.#at;
    const found = this.#match(operator);
    if (found === '==' || found === '!=' || found === '~=') return found;
    this.#at = start;
    return this.fail('no operator, which is ==, != or ~=,');
  }

  value(isExpression: boolean): string {
    const quotes = isExpression ? ['"', "'", '/', '|'] : ['"', "'"];
    return this.#quoted(quotes) ?? this.#match(plainValue) ?? this.fail('no value');
  }

  #quoted(quotes: readonly string[]): string | undefined {
    const quote = this.#text[this.#at];
    if (quote === undefined || !quotes.includes(quote)) return undefined;
    // A backslash in an expression between slashes or bars belongs to the expression, unless it is before the quote.
    const isRaw = quote === '/' || quote === '|';
    this.#at++;
    let text = '';
    while (!this.take(quote)) {
      if (this.isAtEnd) this.fail('a quote that does not end');
      if (this.take('\\')) text += isRaw ? this.#rawEscape(quote) : this.#escape(quote);
      else text += this.#text[this.#at++];
    }
    return text;
  }

  #rawEscape(quote: string): string {
    return this.take(quote) ? quote : '\\';
  }

  #escape(quote: string): string {
    const letter = this.#text[this.#at++] ?? '';
    if (letter === '\\' || letter === quote) return letter;
    const plain = escapes[letter];
    if (plain !== undefined) return plain;
    const digits = numeric[letter];
    if (digits !== undefined) {
      const code = Number.parseInt(this.#match(digits) ?? this.fail('an unfinished escape'), 16);
      return code <= 0x10ffff ? String.fromCodePoint(code) : this.fail('an escape that is no character');
    }
    this.#at--;
    const octal = this.#match(/[0-7]{3}/y);
    return octal === undefined ? this.fail('an unknown escape') : String.fromCharCode(Number.parseInt(octal, 8));
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
