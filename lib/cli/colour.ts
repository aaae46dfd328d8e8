/** Colour, for terminals only. */

export type Colour = 'red' | 'green' | 'yellow' | 'bold';

const codes: Readonly<Record<Colour, number>> = { bold: 1, red: 31, green: 32, yellow: 33 };

export type Paint = (colour: Colour, text: string) => string;

export const plain: Paint = (_colour, text) => text;
const painted: Paint = (colour, text) => `\x1b[${codes[colour]}m${text}\x1b[0m`;

/** Returns the paint for an output. NO_COLOR, set to anything, turns colour off (no-color.org). */
export function paintFor(isTerminal: boolean, { NO_COLOR, TERM }: NodeJS.ProcessEnv): Paint {
  return isTerminal && (NO_COLOR ?? '') === '' && TERM !== 'dumb' ? painted : plain;
}
