/**
 * The rooms of lib/ and their order, from rooms.json: each room imports only from rooms below it and from the files in lib/
 * itself. Writes the import rules for Biome (biome.rooms.json) and the table in docs/architecture.md. With --check it
 * writes nothing, and fails when one of them is stale, or when a room is not in the list.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const path = (name) => join(import.meta.dirname, name);
const read = (name) => readFileSync(path(name), 'utf8');

const rooms = JSON.parse(read('rooms.json'));
const order = Object.keys(rooms);

const rule = (includes, above) => ({
  includes,
  linter: {
    rules: {
      style: {
        noRestrictedImports: {
          level: 'error',
          options: {
            patterns: [
              {
                group: above.map((room) => `**/${room}/**`),
                message: 'Imports go down the list of rooms.json only.',
              },
            ],
          },
        },
      },
    },
  },
});

function importRules() {
  const overrides = order.slice(1).map((room, i) => rule([`lib/${room}/**`], order.slice(0, i + 1)));
  overrides.push(rule(['lib/*.ts', '!lib/index.ts'], order));
  return `${JSON.stringify({ overrides }, undefined, 2)}\n`;
}

function architecture() {
  const lines = order.map((room) => `| \`lib/${room}/\` | ${rooms[room]} |`);
  const table = ['| room | contents |', '| --- | --- |', ...lines].join('\n');
  return read('docs/architecture.md').replace(
    /(<!-- rooms: made by `npm run rooms` -->\n)[\s\S]*?(\n<!-- end of rooms -->)/,
    (_, start, end) => start + table + end,
  );
}

const folders = readdirSync(path('lib'), { withFileTypes: true }).filter((entry) => entry.isDirectory());
const problems = [
  ...folders.filter(({ name }) => !order.includes(name)).map(({ name }) => `lib/${name} is not in rooms.json`),
  ...order.filter((room) => !folders.some(({ name }) => name === room)).map((room) => `there is no lib/${room}`),
];
for (const [file, text] of [
  ['biome.rooms.json', importRules()],
  ['docs/architecture.md', architecture()],
]) {
  if (!process.argv.includes('--check')) writeFileSync(path(file), text);
  else if (read(file) !== text) problems.push(`${file} is stale: npm run rooms`);
}
for (const problem of problems) console.error(`rooms: ${problem}`);
process.exitCode = problems.length > 0 ? 1 : 0;
