/** Archives keep the event loop free, however many files they hold. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { kernelTest, packageRoot, scaled, scratch } from '../support/index.js';
import { LONGEST } from '../support/stretches.js';

const FILES = scaled(20_000);
/** The size of one more file, in MiB: the addon compresses it at a stretch. */
const LARGE = scaled(64, 8);

if (existsSync('/proc/thread-self/schedstat')) {
  kernelTest(`apply and pack keep the event loop for at most 10 ms, with ${FILES} files`, (t) => {
    t.timeout(300_000);
    const program = join(packageRoot, 'dist-test/test/support/event-loop-archives.js');
    // The garbage collector's helper threads wait for processors that others use.
    const args = ['--single-threaded-gc', program, scratch(t), String(FILES), String(LARGE)];
    const env = { ...process.env, NODE_V8_COVERAGE: undefined };
    const results = JSON.parse(execFileSync(process.execPath, args, { encoding: 'utf8', env }));
    t.log(results);
    for (const [name, milliseconds] of Object.entries(results)) t.true((milliseconds as number) <= LONGEST, name);
  });
}
