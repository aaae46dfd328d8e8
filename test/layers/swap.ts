/**
 * A program that exchanges a directory and a symbolic link to elsewhere, again and again. Arguments: the path of the
 * directory, that of the link, and where the link leads.
 */
import { lstatSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { calls } from '#lib/kernel/calls.js';
import { AT_FDCWD } from '#lib/kernel/constants.js';
import { performSync } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';

const RENAME_EXCHANGE = 2;
const [directory = '', link = '', elsewhere = ''] = process.argv.slice(2);
const plan = new Plan();
plan.add(calls.renameat2, [AT_FDCWD, directory, AT_FDCWD, link, RENAME_EXCHANGE], { tolerate: 'any' });
const isLink = (path: string): boolean | undefined => lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink();

process.stdout.write('ready\n');
for (;;) {
  performSync(plan);
  // A merge may have taken one of them, or put a directory in the place of the link.
  if (isLink(link) === isLink(directory)) {
    rmSync(link, { recursive: true, force: true });
    symlinkSync(elsewhere, link);
  }
  try {
    if (isLink(directory) === undefined) {
      mkdirSync(directory);
      writeFileSync(join(directory, 'f0'), 'again');
    }
  } catch {
    // The merge was quicker.
  }
}
