/** The check of the language finds sentences that open with a clause, in comments and in documents. */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { packageRoot, scratch } from '../support/index.js';

const opening = ['What is missing, stays.', 'Whether it ends.', 'Where it is busy, it waits.', 'Of two, one waits.'];
const allowed = ['That is a failure.', 'Of course it ends.', 'The caller says what is missing.', 'Whereas it waits.'];

test('a planted violation fails, with its file and line', (t) => {
  const dir = scratch(t, 'disk');
  const check = (name: string, text: string) => {
    writeFileSync(join(dir, name), text);
    return spawnSync(process.execPath, ['language.mjs', join(dir, name)], { cwd: packageRoot, encoding: 'utf8' });
  };
  const forms = (sentence: string) => ({
    'a.ts': `let a = 1;\n/**\n * A first sentence. ${sentence}\n */\n`,
    'b.ts': `let a = 1; // ${sentence}\n`,
    'c.cc': `// ${sentence}\n`,
    'd.md': `# Title\n\nA first\nsentence. ${sentence}\n`,
    'e.md': `| a | b |\n| --- | --- |\n| a | ${sentence} |\n`,
  });
  for (const sentence of opening) {
    for (const [name, text] of Object.entries(forms(sentence))) {
      const { status, stdout } = check(name, text);
      t.is(status, 1, `${name}: ${sentence}`);
      t.regex(stdout, new RegExp(`${name}:\\d+: `));
    }
  }
  for (const sentence of allowed) {
    for (const [name, text] of Object.entries(forms(sentence)))
      t.is(check(name, text).status, 0, `${name}: ${sentence}`);
  }
});
