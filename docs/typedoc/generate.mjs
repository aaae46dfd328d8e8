/** Writes docs/reference from the docstrings of the public entries, which package.json lists. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const here = import.meta.dirname;
const { exports } = JSON.parse(readFileSync(join(here, '../../package.json'), 'utf8'));
// The reference can go to another directory, for a comparison.
const [reference = join(here, '../reference')] = process.argv.slice(2);
const typedoc = join(here, 'node_modules/.bin/typedoc');
if (!existsSync(typedoc)) {
  console.error(
    'docs/reference is not written: typedoc is not installed. Run `npm ci`, then `npm run docs:reference`.',
  );
  process.exit(1);
}
/** Puts a table of contents before the first group: a line for each group, with a link to each export. */
function addContents(page) {
  const text = readFileSync(page, 'utf8');
  const lines = [];
  const used = new Map(); // GitHub numbers the headings that would have one anchor
  for (const [, marks, title] of text.matchAll(/^(#+) (.*)$/gm)) {
    const anchor = title
      .toLowerCase()
      .replace(/[^\w -]/g, '')
      .replaceAll(' ', '-');
    const before = used.get(anchor) ?? 0;
    used.set(anchor, before + 1);
    if (marks === '##') lines.push({ title, links: [] });
    if (marks !== '###') continue;
    lines.at(-1).links.push(`[\`${/^\w+/.exec(title)[0]}\`](#${anchor}${before > 0 ? `-${before}` : ''})`);
  }
  const contents = lines.map(({ title, links }) => `- ${title}: ${links.join(', ')}`).join('\n');
  writeFileSync(page, text.replace(/^## /m, `${contents}\n\n## `));
}

// A directory for each entry. typedoc empties it first, so the outermost comes first.
for (const [name, { types }] of Object.entries(exports)) {
  if (types === undefined) continue;
  const source = types.replace('./dist/', '../../lib/').replace(/\.d\.ts$/, '.ts');
  const options = ['--entryPoints', source, '--out', join(reference, name), '--name', join('overlayfs', name)];
  execFileSync(typedoc, options, { cwd: here, stdio: 'inherit' });
  addContents(join(reference, name, 'README.md'));
}
