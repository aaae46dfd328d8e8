/** Mounting needs root, or a user namespace in which one is root. */
import { spawn } from 'node:child_process';
import { mountOverlay, OverlayError, unmount } from 'overlayfs';
import { Place } from './place.js';
import type { Stage } from './stage.js';

/** Set in the environment of the second run: there is no third one. */
const MARK = 'OVERLAYFS_WALK_UNSHARED';

export const isSecondRun = (): boolean => process.env[MARK] !== undefined;

/** Tries it: whether a mount is allowed depends on more than the user's id. */
export async function canMount({ dir, signal }: Stage): Promise<boolean> {
  const place = new Place(dir);
  await place.makeDirectories('trial/a', 'trial/b', 'trial/target');
  const target = place.at('trial/target');
  try {
    await mountOverlay({ lowerdir: [place.at('trial/a'), place.at('trial/b')], target, signal });
  } catch (error) {
    if (OverlayError.is(error) && error.reason === 'no-privilege') return false;
    throw error;
  }
  await unmount(target);
  return true;
}

/** How a process ended: one of the two is null. */
export interface Ending {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** This program once more, as root of a new user namespace with a mount namespace of its own. */
export async function runInNamespace(passedOn: readonly NodeJS.Signals[]): Promise<Ending> {
  const again = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const child = spawn('unshare', ['-Urm', ...again], { stdio: 'inherit', env: { ...process.env, [MARK]: '1' } });
  // A signal may have been sent to this process alone, and it is the other one that has things to clean up.
  for (const name of passedOn) process.on(name, () => child.kill(name));
  return new Promise((resolve, reject) => {
    child.on('error', (cause) => {
      reject(new Error('unshare(1) cannot be run, which would give a user namespace: be root', { cause }));
    });
    child.on('exit', (code, signal) => {
      resolve({ code, signal });
    });
  });
}
