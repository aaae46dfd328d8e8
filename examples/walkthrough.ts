/**
 * A walk through OverlayFS, on the kernel of this machine: each step says what it does, does it with the
 * library, and checks what came of it. Ends with status 1 at the first step that is not as told, and leaves
 * nothing behind in any case. `npm run demo`
 */
import { release } from 'node:os';
import type { OverlayError } from 'overlayfs';
import { walkContainer } from './walkthrough/container.js';
import { canMount, isSecondRun, runInNamespace } from './walkthrough/privilege.js';
import { closeStage, openStage, type Stage } from './walkthrough/stage.js';
import { explain, reportFailure, reportSuccess, title } from './walkthrough/terminal.js';
import { walkTwoLayers } from './walkthrough/two-layers.js';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Ends the walk early, at the next step: by then all that was made is known, and can be removed. */
const interruption = new AbortController();
let interruptedBy: NodeJS.Signals | undefined;

function interrupt(signal: NodeJS.Signals): void {
  interruptedBy ??= signal;
  interruption.abort();
}

/** The whole walk; false, and nothing of it, where this process may not mount. */
async function walk(): Promise<boolean> {
  const stage = openStage(interruption.signal);
  try {
    if (!(await canMount(stage))) return false;
    introduce(stage);
    await walkTwoLayers(stage);
    await walkContainer(stage);
    return true;
  } finally {
    closeStage(stage);
  }
}

function introduce({ dir, userxattr }: Stage): void {
  const who = userxattr ? 'root of a user namespace' : 'root';
  title('A walk through OverlayFS', `Linux ${release()}, Node ${process.version}, as ${who}, in ${dir}`);
}

async function main(): Promise<void> {
  if (await walk()) {
    reportSuccess();
    return;
  }
  interruption.signal.throwIfAborted();
  if (isSecondRun()) throw new Error('This system lets no plain user mount, not even in a user namespace: be root');
  explain('Not allowed to mount here: starting again in a user namespace (unshare -Urm)');
  const { code, signal } = await runInNamespace(SIGNALS);
  interruptedBy = signal ?? interruptedBy;
  process.exitCode = code ?? 1;
}

/** Advice for when the place is at fault, and not the walk. */
function adviceFor(error: unknown): string {
  const { code, reason = '' } = error as Partial<OverlayError>;
  const isAboutPlace = code === 'ENOSPC' || ['upper-unsupported', 'merged-mount', 'xattr-denied'].includes(reason);
  return isAboutPlace ? 'The environment variable TMPDIR can name a directory on another file system.' : '';
}

for (const signal of SIGNALS) process.on(signal, interrupt);
// A reader that goes away, as `head` does, ends the walk too.
process.stdout.on('error', () => interruption.abort());

try {
  await main();
} catch (error) {
  process.exitCode = 1;
  if (!interruption.signal.aborted) reportFailure(error, adviceFor(error));
  else if (interruptedBy !== undefined) process.stderr.write(`\nEnded by ${interruptedBy}; all is removed again.\n`);
}
if (interruptedBy !== undefined) {
  // The way a program ends that has not caught the signal.
  process.removeAllListeners(interruptedBy);
  process.kill(process.pid, interruptedBy);
}
