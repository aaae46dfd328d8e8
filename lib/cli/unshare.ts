/** `overlayfs unshare` */
import { type SpawnOptions, spawn } from '../programs/spawn.js';
import type { Command, Outcome, Parsed } from './command.js';
import { mapRootFlag, programCodes, runToEnd, subIdsFlag, toTexts } from './program.js';

type Options = Pick<SpawnOptions, 'mapRoot' | 'subIds'>;

async function runUnshared(parsed: Parsed<Options>): Promise<Outcome> {
  const [command = process.env['SHELL'] || '/bin/sh', ...args] = toTexts(parsed.operands);
  return runToEnd(parsed, (stdio) => spawn(command, args, { ...parsed.options, capabilities: true, stdio }));
}

export const unshare: Command<Options> = {
  about:
    'Runs a program that may mount, by default the shell. It has a user namespace and a mount namespace of its own: it ' +
    'keeps its user id, and no other program sees its mounts, which end with it. Needs no privilege on machines that ' +
    'allow plain users to create user namespaces.',
  operands: '[COMMAND] [ARG...]',
  forms: ['[OPTION...] [COMMAND [ARG...]]'],
  runsProgram: true,
  groups: [{ title: 'the program', flags: [mapRootFlag, subIdsFlag] }],
  notes: `${programCodes} Options after the first word of the program are its own.`,
  examples: [
    'overlayfs unshare node server.js',
    "overlayfs unshare sh -c 'overlayfs mount --lowerdir base --upperdir upper --create tree && git -C tree status'",
  ],
  run: runUnshared,
};
