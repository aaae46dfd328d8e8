/** Rootless mounts whose child process is killed at any moment. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mountOverlay, OverlayError } from 'overlayfs';
import { countDescriptors, layers, mountTest, scaled, scratch } from '../../support/index.js';

/** Kills every child of a process that is its copy, until it is killed itself. Programs of others are no copies. */
const killer = `
  const { readdirSync, readFileSync, readlinkSync } = require('node:fs');
  const [parent] = process.argv.slice(1);
  const read = (path) => { try { return readFileSync(path, 'utf8'); } catch { return ''; } };
  const link = (path) => { try { return readlinkSync(path); } catch { return undefined; } };
  const program = link('/proc/' + parent + '/exe');
  let kills = 0;
  process.on('SIGTERM', () => { console.log(kills); process.exit(); });
  console.log('ready');
  const round = () => {
    for (const task of readdirSync('/proc/' + parent + '/task')) {
      for (const pid of read('/proc/' + parent + '/task/' + task + '/children').split(' ')) {
        // The killer itself was made by execve(2).
        if (pid === '' || Number(pid) === process.pid || link('/proc/' + pid + '/exe') !== program) continue;
        if (Math.random() < 0.5) continue;
        try { process.kill(Number(pid), 'SIGKILL'); kills++; } catch {}
      }
    }
    setImmediate(round);
  };
  round();`;

mountTest(
  'a killed child leaves no reservation, no lock and no descriptor behind',
  { needs: 'rootless' },
  async (t) => {
    const dir = scratch(t);
    const { target: _, ...options } = layers(dir);
    const reasons = new Set<string>();
    const mountOnce = async (): Promise<boolean> => {
      try {
        const mount = await mountOverlay({ ...options, rootless: true });
        await mount.unmount();
        return true;
      } catch (error) {
        if (!(error instanceof OverlayError)) throw error;
        reasons.add(error.reason);
        return false;
      }
    };
    t.true(await mountOnce());
    const before = countDescriptors();
    const program = spawn(process.execPath, ['-e', killer, String(process.pid)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.teardown(() => program.kill('SIGKILL'));
    await once(program.stdout, 'data');
    let failures = 0;
    for (let i = 0; i < scaled(1_000, 100); i++) if (!(await mountOnce())) failures++;
    const output = once(program.stdout, 'data');
    program.kill('SIGTERM');
    const kills = Number((await output)[0]);
    if (program.exitCode === null) await once(program, 'exit');
    // A child that dies at the end of a system call loses the descriptor which that call made. It may be a mount's.
    const lost = countDescriptors() - before;
    t.log({ kills, failures, lost });
    t.true(kills > 0 && lost <= 2 * failures, `${kills} kills, ${lost} lost, ${failures} failures`);
    // The descriptor that is lost can be that of the mount, which goes on then.
    if (lost > 0) reasons.delete('upper-in-use');
    t.deepEqual([...reasons], failures > 0 ? ['process-killed'] : []);
    t.true(lost > 0 || (await mountOnce()), 'the directories are free');
  },
);
