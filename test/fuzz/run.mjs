// Runs all fuzzers side by side: npm run test:fuzz [-- --seconds N] [--seed N] [NAME...]
//
// A fuzzer is test/fuzz/NAME.cc, compiled with native/ under AddressSanitizer, LeakSanitizer and
// UndefinedBehaviorSanitizer, or test/fuzz/NAME.ts. It takes --seconds N and --seed N, prints its seed and its counts, and
// ends with another status than 0 if it finds something.
import { mkdirSync, readdirSync } from 'node:fs';
import { basename, extname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { ASAN, compile, prefix, root, run, temporary } from '../sanitizers/compile.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string', default: '20' }, seed: { type: 'string' } },
});

/** The command that starts a fuzzer. */
async function command(file, dir) {
  if (extname(file) === '.ts') return [process.execPath, join(root, 'dist-test/test/fuzz', file.replace('.ts', '.js'))];
  // The fuzzers make no JavaScript objects, so Node-API stays undefined.
  return [
    ...prefix,
    await compile(dir, `test/fuzz/${file}`, ASAN, ['-no-pie', '-Wl,--unresolved-symbols=ignore-in-object-files']),
  ];
}

async function fuzz(file) {
  const name = basename(file, extname(file));
  const tmp = join(temporary, name, 'tmp');
  mkdirSync(tmp, { recursive: true });
  const options = ['--seconds', values.seconds, ...(values.seed === undefined ? [] : ['--seed', values.seed])];
  const { status, output } = await run([...(await command(file, join(temporary, name))), ...options], {
    env: { TMPDIR: tmp },
    seconds: Number(values.seconds) + 120,
  });
  console.log(`${output.trimEnd()}\n${name}: ${status === 0 ? 'ok' : `FAILED, it ended with ${status}`}`);
  return status === 0;
}

const files = readdirSync(import.meta.dirname).filter((file) => ['.cc', '.ts'].includes(extname(file)));
const chosen = files.filter((file) => positionals.length === 0 || positionals.includes(basename(file, extname(file))));
const results = await Promise.allSettled(chosen.map(fuzz));
for (const { reason } of results) if (reason !== undefined) console.log(reason.message);
if (chosen.length === 0 || !results.every(({ value }) => value === true)) process.exitCode = 1;
