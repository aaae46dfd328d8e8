/** The tables of docs/cli.md that the descriptions of the commands give. Pure. */
import { formsOf, summaryOf } from '#lib/cli/command.js';
import { commands } from '#lib/cli/commands.js';
import { exitCodes } from '#lib/cli/parser.js';

const cell = (text: string): string => text.replaceAll('|', '\\|');
const table = (titles: readonly string[], rows: readonly (readonly string[])[]): string =>
  [titles, titles.map(() => '---'), ...rows].map((cells) => `| ${cells.map(cell).join(' | ')} |\n`).join('');
const all = Object.entries(commands);

const tables: Readonly<Record<string, string>> = {
  commands: table(
    ['command', 'what it does'],
    all.map(([name, command]) => [`\`overlayfs ${name} ${formsOf(command)[0]}\``, summaryOf(command)]),
  ),
  'exit codes': table(['code', 'meaning'], exitCodes),
  'answers no': table(
    ['command', 'the answer no'],
    all.flatMap(([name, { no }]) => (no === undefined ? [] : [[`\`${name}\``, no]])),
  ),
};

/** Returns the page with the tables in their places. */
export function cliPage(page: string): string {
  return Object.entries(tables).reduce((text, [name, rows]) => {
    const [start, end] = [`<!-- ${name}: made by \`npm run docs\` -->\n`, `<!-- end of ${name} -->`];
    const [before = '', rest = ''] = text.split(start);
    return `${before}${start}\n${rows}\n${rest.slice(rest.indexOf(end))}`;
  }, page);
}
