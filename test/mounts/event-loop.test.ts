/** The promise forms keep the event loop free, however many mounts there are. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { layers, mountTest, packageRoot, scaled, scratch } from '../support/index.js';

const MOUNTS = scaled(10_000);
/** In ms. */
const LONGEST = 10;

if (existsSync('/proc/thread-self/schedstat')) {
  mountTest(
    `no promise form keeps the event loop for more than 10 ms, with ${MOUNTS} mounts`,
    { needs: 'mountBeneath' },
    (t) => {
      t.timeout(300_000);
      const dir = scratch(t);
      layers(dir);
      mkdirSync(join(dir, 'other'));
      const program = join(packageRoot, 'dist-test/test/support/event-loop.js');
      // The garbage collector's helper threads wait for processors that others use.
      const args = ['--single-threaded-gc', program, dir, String(MOUNTS)];
      const env = { ...process.env, NODE_V8_COVERAGE: undefined };
      const results = JSON.parse(execFileSync(process.execPath, args, { encoding: 'utf8', env }));
      t.log(results);
      for (const [name, milliseconds] of Object.entries(results)) t.true((milliseconds as number) <= LONGEST, name);
    },
  );
}
