/** Running a program with another root directory. */
import { spawn } from 'node:child_process';

/** Users other than root may lack the directories in which chroot is. */
const PATH = `${process.env.PATH ?? ''}:/usr/sbin:/sbin:/usr/bin:/bin`;
/** Many times what it takes. */
const TIMEOUT_MS = 120_000;

export interface Finished {
  readonly ended: string;
  readonly output: string;
}

/** Waits for the end of the program whatever happens: as long as it runs, its root cannot be unmounted. */
export async function runInside(root: string, command: readonly string[], signal: AbortSignal): Promise<Finished> {
  signal.throwIfAborted();
  const child = spawn('chroot', [root, ...command], {
    cwd: '/',
    env: { PATH },
    stdio: ['ignore', 'pipe', 'pipe'],
    // Ctrl-C is for the walk, which then ends this program itself.
    detached: true,
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
    signal,
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  }
  const ended = await new Promise<string>((resolve) => {
    let failure: Error | undefined;
    child.on('error', (error) => {
      failure = error;
    });
    child.on('close', (code, killedBy) => {
      resolve(failure?.message ?? (killedBy === null ? `exit status ${code}` : `killed by ${killedBy}`));
    });
  });
  signal.throwIfAborted();
  return { ended, output };
}
