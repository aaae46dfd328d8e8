/** The log: JSON, a line a request. Pure but for the clock. */
import { printableJson } from '../text.js';

const levels = ['debug', 'info', 'warn', 'error', 'silent'] as const;

export type LogLevel = (typeof levels)[number];
export const logLevels: readonly LogLevel[] = levels;

export type LogFields = Readonly<Record<string, string | number | undefined>>;

/** The most characters of a text in a line. */
const MOST = 1000;

const shorten = (_: string, value: unknown): unknown =>
  typeof value === 'string' && value.length > MOST ? `${value.slice(0, MOST)}...` : value;

export class Log {
  readonly #least: number;
  readonly #write: (line: string) => void;

  constructor(level: LogLevel, write: (line: string) => void) {
    this.#least = levels.indexOf(level);
    this.#write = write;
  }

  shows(level: LogLevel): boolean {
    return levels.indexOf(level) >= this.#least;
  }

  write(level: Exclude<LogLevel, 'silent'>, message: string, fields: LogFields = {}): void {
    if (!this.shows(level)) return;
    try {
      const line = { time: new Date().toISOString(), level, message, ...fields };
      this.#write(printableJson(JSON.stringify(line, shorten)));
    } catch {
      // A line that cannot be written fails no request.
    }
  }
}
