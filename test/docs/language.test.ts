/** The check of the language finds sentences that open with a clause, in comments and in documents. */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { packageRoot, scratch } from '../support/index.js';

const opening = ['What is missing, stays.', 'Whether it ends.', 'Where it is busy, it waits.', 'Of two, one waits.'];
const allowed = ['That is a failure.', 'Of course it ends.', 'The caller says what is missing.', 'Whereas it waits.'];

const forms = (sentence: string) => ({
  'a.ts': `let a = 1;\n/**\n * A first sentence. ${sentence}\n */\n`,
  'b.ts': `let a = 1; // ${sentence}\n`,
  'c.cc': `// ${sentence}\n`,
  'd.md': `# Title\n\nA first\nsentence. ${sentence}\n`,
  'e.md': `| a | b |\n| --- | --- |\n| a | ${sentence} |\n`,
});

function check(dir: string, sentences: readonly string[]) {
  const files = sentences.flatMap((sentence, i) =>
    Object.entries(forms(sentence)).map(([name, text]) => {
      const file = join(dir, `${i}${name}`);
      writeFileSync(file, text);
      return file;
    }),
  );
  const { status, stdout } = spawnSync(process.execPath, ['language.mjs', ...files], {
    cwd: packageRoot,
    encoding: 'utf8',
  });
  return { status, missed: files.filter((file) => !new RegExp(`^${file}:\\d+: `, 'm').test(stdout)), files };
}

test('each planted violation is found, with its file and line', (t) => {
  const { status, missed } = check(scratch(t, 'disk'), opening);
  t.is(status, 1);
  t.deepEqual(missed, []);
});

test('other sentences pass', (t) => {
  const { status, missed, files } = check(scratch(t, 'disk'), allowed);
  t.is(status, 0);
  t.deepEqual(missed, files);
});
