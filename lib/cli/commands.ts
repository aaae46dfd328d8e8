/** The commands of the program `overlayfs`: finds the requested one and prints its outcome. */
import { once } from 'node:events';
import { apply } from './apply.js';
import { changes } from './changes.js';
import { check } from './check.js';
import type { Command, Commands, Outcome, Row } from './command.js';
import { argumentsOf, type Bytes } from './command-line.js';
import { completionOf } from './completion.js';
import { errorText, exitCodeOf, FAILED, isWrongUsage, type MessageStyle, NO, NOT_RUN, toShown } from './errors.js';
import { explain } from './explain.js';
import { features } from './features.js';
import { holders } from './holders.js';
import { imageCommit, imageLs, imageUnpack } from './image.js';
import { imageRun } from './image-run.js';
import { toJsonLine } from './json.js';
import { lookup } from './lookup.js';
import { ls } from './ls.js';
import { merge } from './merge.js';
import { mount } from './mount.js';
import { pack } from './pack.js';
import { parse } from './parse.js';
import { parseBy, programParser } from './parser.js';
import { rm } from './rm.js';
import { run } from './run.js';
import { serve } from './serve.js';
import { snapshots } from './snapshot.js';
import { spellingOf } from './spelling.js';
import { squash } from './squash.js';
import { umount } from './umount.js';
import { unshare } from './unshare.js';
import { UsageError } from './usage-error.js';
import { watch } from './watch.js';
import { whiteout } from './whiteout.js';

/** The commands by their names, in the groups of the help. */
export const groups: Readonly<Record<string, Commands>> = {
  mounts: { mount, umount, ls, holders, watch, explain, run, unshare },
  layers: { changes, lookup, check, merge, squash, pack, apply, rm, whiteout },
  snapshots: { ...snapshots, serve },
  images: { 'image run': imageRun, 'image unpack': imageUnpack, 'image ls': imageLs, 'image commit': imageCommit },
  'this machine': { features, completion: completionOf(() => commands) },
};

export const commands: Commands = Object.assign({}, ...Object.values(groups));

const styleOf = (command: Pick<Command, 'groups' | 'forms' | 'operands'> = {}): MessageStyle => ({
  program: 'overlayfs',
  spelling: spellingOf(command),
});

/** Prints errors, and points to the help if they are about the command line. */
function report(errors: readonly unknown[], command?: string, style = styleOf()): void {
  for (const error of errors) process.stderr.write(errorText(error, style));
  if (errors.some(isWrongUsage)) {
    process.stderr.write(`Try 'overlayfs ${command === undefined ? '' : `${command} `}--help'.\n`);
  }
}

/** Writes the rows as fast as the reader reads, and until it has seen enough. Returns whether there was one. */
async function writeRows(rows: NonNullable<Outcome['rows']>, toText: (row: Row) => string): Promise<boolean> {
  let isEmpty = true;
  try {
    for await (const row of rows) {
      isEmpty = false;
      const text = toText(row);
      if (text !== '' && !process.stdout.write(text)) await once(process.stdout, 'drain');
      if (!process.stdout.writable) break;
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error;
  }
  return isEmpty;
}

async function runCommand(name: string, command: Command, args: readonly Bytes[]): Promise<number> {
  const style = styleOf(command);
  const end = args.indexOf('--');
  // Searched by hand, since they count even if the rest of the line cannot be parsed.
  const given = new Set(args.slice(0, end < 0 ? args.length : end));
  let [isJson, isQuiet] = [given.has('--json') || given.has('-J'), false];
  const toText = ({ text, json }: Row): string => (isQuiet ? '' : isJson ? `${toJsonLine(json)}\n` : text);
  const print = (text: string): unknown => text === '' || process.stdout.write(text);
  // Not the exit code of a program, as far as possible.
  const codeOf = command.runsProgram ? () => NOT_RUN : exitCodeOf;
  const printErrors = (errors: readonly unknown[], json?: object): void => {
    if (isJson) print(`${toJsonLine({ ...json, errors: errors.map((error) => toShown(error, style)) })}\n`);
    else report(errors, name, style);
  };
  try {
    const parsed = parse(args, name, command);
    if (parsed === undefined) return 0;
    ({ isJson, isQuiet } = parsed);
    const { rows, text = '', json, errors = [], exitCode } = await command.run(parsed);
    const isEmpty = rows !== undefined && (await writeRows(rows, toText));
    if (errors.length === 0 || !isJson) {
      // A full device refuses an empty write too. Then the exit code would not be that of the program that ran.
      if (json !== undefined || text !== '') print(toText({ text, json }));
    }
    if (errors.length > 0) printErrors(errors, json);
    return exitCode ?? Math.max(isEmpty && command.isNoIfEmpty ? NO : 0, ...errors.map(codeOf));
  } catch (error) {
    printErrors([error]);
    return codeOf(error);
  }
}

/** Runs the program. Returns the exit code. */
export async function main(decoded: readonly string[]): Promise<number> {
  try {
    const [first, ...rest] = argumentsOf(decoded);
    const words = first === 'help' ? [...rest, '--help'] : first === undefined ? [] : [first, ...rest];
    // Some have names of two words.
    for (const length of [2, 1]) {
      const name = words.slice(0, length).join(' ');
      const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
      if (command !== undefined) return await runCommand(name, command, words.slice(length));
    }
    const start = Object.keys(commands).some((name) => name.startsWith(`${words[0]} `)) ? words.shift() : undefined;
    const program = programParser(groups, start);
    const [word] = words;
    const isHelp = word === '--help' || word === '-h';
    if (isHelp || word === undefined) {
      program.outputHelp({ error: !isHelp });
      return isHelp ? 0 : FAILED;
    }
    parseBy(program, [word]);
    throw new UsageError(`a command comes first, not '${word}'`);
  } catch (error) {
    report([error]);
    return exitCodeOf(error);
  }
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // The reader has seen enough (head), which is not an error.
  if (error.code === 'EPIPE') return;
  report([error]);
  process.exit(FAILED);
});
