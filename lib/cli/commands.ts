/** The commands of the program `overlayfs`: finds the requested one and prints its outcome. */
import { pipeline } from 'node:stream/promises';
import { apply } from './apply.js';
import { changes } from './changes.js';
import { check } from './check.js';
import { type Command, flagsOfCommand } from './command.js';
import { argumentsOf, type Bytes } from './command-line.js';
import { containerd } from './containerd.js';
import { du } from './du.js';
import { errorText, exitCodeOf, FAILED, toShown, WRONG_USAGE } from './errors.js';
import { explain } from './explain.js';
import { features } from './features.js';
import { flatten, squash } from './fold.js';
import { commandHelp, programHelp } from './help.js';
import { holders } from './holders.js';
import { toJson } from './json.js';
import { lookup } from './lookup.js';
import { ls } from './ls.js';
import { baseline, merge } from './merge.js';
import { mount } from './mount.js';
import { pack } from './pack.js';
import { parse } from './parse.js';
import { run } from './run.js';
import { runImage } from './run-image.js';
import { snapshot } from './snapshot.js';
import { umount } from './umount.js';
import { UsageError, unknownWord } from './usage-error.js';
import { whiteout } from './whiteout.js';

const commands: Readonly<Record<string, Command>> = {
  mount,
  umount,
  run,
  ls,
  holders,
  changes,
  lookup,
  check,
  du,
  merge,
  baseline,
  squash,
  flatten,
  apply,
  pack,
  whiteout,
  snapshot,
  containerd,
  'run-image': runImage,
  explain,
  features,
};
const commandNames = Object.keys(commands);

/** Prints errors, and points to the help if they are about the command line. */
function report(errors: readonly unknown[], command?: string): void {
  for (const error of errors) process.stderr.write(errorText(error));
  if (errors.some((error) => exitCodeOf(error) === WRONG_USAGE)) {
    process.stderr.write(`Try 'overlayfs ${command === undefined ? '' : `${command} `}--help'.\n`);
  }
}

/** Writes as fast as the reader reads, and until it has seen enough. */
async function writeParts(parts: AsyncIterable<string>): Promise<void> {
  try {
    await pipeline(parts, process.stdout, { end: false });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error;
  }
}

async function runCommand(name: string, command: Command, args: readonly Bytes[]): Promise<number> {
  const end = args.indexOf('--');
  // Searched by hand, since it counts even if the rest of the line cannot be parsed.
  const isJson = args.slice(0, end < 0 ? args.length : end).includes('--json');
  try {
    const parsed = parse(args, flagsOfCommand(command), command.hasArguments);
    if (parsed.options['help']) {
      process.stdout.write(commandHelp(name, command));
      return 0;
    }
    const { text = '', json, parts, errors = [], exitCode } = await command.run(parsed);
    if (parts !== undefined) await writeParts(parts);
    else if (isJson)
      process.stdout.write(
        toJson(errors.length === 0 ? json : { ...json, errors: errors.map((error) => toShown(error)) }),
      );
    else {
      // A full device refuses an empty write too. Then the exit code would not be that of the program that ran.
      if (text !== '') process.stdout.write(text);
      report(errors, name);
    }
    return exitCode ?? Math.max(0, ...errors.map(exitCodeOf));
  } catch (error) {
    if (isJson) process.stdout.write(toJson({ errors: [toShown(error)] }));
    else report([error], name);
    return exitCodeOf(error);
  }
}

/** Runs the program. Returns the exit code. */
export async function main(decoded: readonly string[]): Promise<number> {
  try {
    const [first, ...rest] = argumentsOf(decoded);
    const isHelp = first === '--help' || first === '-h';
    if (first === undefined || isHelp) {
      const help = programHelp(Object.entries(commands).map(([name, { about }]) => [name, about]));
      (isHelp ? process.stdout : process.stderr).write(help);
      return isHelp ? 0 : WRONG_USAGE;
    }
    const command = Object.hasOwn(commands, first) ? commands[first] : undefined;
    if (command !== undefined) return await runCommand(first, command, rest);
    const shown = Buffer.from(first, 'latin1').toString();
    if (first.startsWith('-'))
      throw new UsageError(`a command comes first, not '${shown}'`, `One of: ${commandNames.join(', ')}.`);
    throw unknownWord('unknown command', shown, commandNames);
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
