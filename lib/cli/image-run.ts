/** `overlayfs image run` */
import type { ChildProcess } from 'node:child_process';
import { constants } from 'node:os';
import type { ApplyLimits } from '../archives/apply-options.js';
import { type RunContainerOptions, runContainer, type Volume } from '../images/index.js';
import { formatChange } from '../layers/changes.js';
import { devicesFlag, limitFlags } from './apply.js';
import type { Command, Outcome, Parsed } from './command.js';
import { ownFlag } from './flags.js';
import { findImage, imageJson, platformFlag } from './image.js';
import { withBar } from './long-work.js';
import { networkFlag, notStarted, passSignals, subIdsFlag, toTexts } from './program.js';
import { type RootFlag, rootFlag, withSnapshots } from './store.js';
import { UsageError } from './usage-error.js';

interface Options
  extends RootFlag,
    ApplyLimits,
    Pick<RunContainerOptions, 'env' | 'user' | 'cwd' | 'subIds' | 'devices'> {
  readonly commit?: string;
  readonly platform?: string;
  readonly runtime?: string;
  readonly entrypoint?: string;
  readonly changes?: boolean;
  readonly volumes?: string[];
  readonly network?: 'host' | 'none';
}

function toVolume(text: string): Volume {
  const [source = '', target = '', access, ...more] = text.split(':');
  const isRight = source !== '' && target.startsWith('/') && more.length === 0;
  if (!isRight || (access !== undefined && access !== 'ro')) {
    throw new UsageError(`--volume cannot be '${text}'`, 'Write it as --volume DIR:PATH or --volume DIR:PATH:ro.');
  }
  return { source, target, readonly: access === 'ro' };
}

async function run(parsed: Parsed<Options>): Promise<Outcome> {
  const {
    root,
    platform,
    runtime,
    entrypoint,
    changes: showsChanges,
    volumes = [],
    network,
    ...given
  } = parsed.options;
  const [reference = '', ...words] = parsed.operands;
  const command = toTexts(words);
  const options = {
    ...given,
    ...(command.length > 0 && { command }),
    ...(entrypoint !== undefined && { entrypoint: [entrypoint] }),
    ...(runtime !== undefined && { runtime: runtime === 'none' ? (false as const) : runtime }),
    volumes: volumes.map(toVolume),
    network: network !== 'none',
  };
  const image = await findImage(reference, platform);
  let child: ChildProcess | undefined;
  const controller = new AbortController();
  let interrupt: NodeJS.Signals | undefined;
  passSignals(
    () => child,
    (signal) => {
      interrupt = signal;
      controller.abort();
    },
  );
  try {
    const {
      exitCode,
      changes,
      image: committed,
    } = await withBar(parsed, (bar) =>
      withSnapshots({ ...(root !== undefined && { root }) }, {}, (snapshotter) =>
        runContainer(image, {
          ...options,
          snapshotter,
          signal: controller.signal,
          stdio: parsed.isJson ? ['inherit', 2, 2] : 'inherit',
          onProgress: bar.show,
          onStart(container) {
            bar.end();
            child = container.process;
          },
        }),
      ),
    );
    const lines = showsChanges ? changes.map((change) => `${formatChange(change)}\n`) : [];
    const json = { exitCode, changes, ...(committed !== undefined && { image: imageJson(committed) }) };
    return { text: lines.join(''), json, exitCode };
  } catch (error) {
    const exitCode = interrupt === undefined ? notStarted(error) : 128 + constants.signals[interrupt];
    if (exitCode === undefined) throw error;
    return { errors: [error], exitCode };
  }
}

const value = { kind: 'text' } as const;

export const imageRun: Command<Options> = {
  about:
    'Runs an image of an OCI layout as a container: unpacks its layers into snapshots, mounts them, and runs the program ' +
    'that the image names. With privilege, runc or crun makes the container, if there is one. Without, it is a user ' +
    'namespace of the calling user.',
  operands: '<IMAGE> [COMMAND] [ARG...]',
  forms: ['[OPTION...] LAYOUT[:TAG] [COMMAND [ARG...]]'],
  runsProgram: true,
  groups: [
    {
      title: 'options',
      flags: [
        rootFlag,
        ownFlag('commit', 'commits the container as an image with this tag', { ...value, default: 'it is discarded' }),
        ownFlag('changes', 'prints what the container has changed'),
        ownFlag('env', 'a variable', {
          short: 'e',
          kind: 'pair',
          isList: true,
          default: 'none',
        }),
        ownFlag('volumes', 'a directory or file that the container sees', {
          short: 'v',
          spelling: 'volume',
          value: 'DIR:PATH[:ro]',
          kind: 'text',
          isList: true,
          default: 'none',
        }),
        ownFlag('user', 'the user, as NAME, ID, NAME:GROUP or ID:GROUP', {
          ...value,
          short: 'u',
          default: "the image's",
        }),
        ownFlag('cwd', 'where the program starts', { ...value, short: 'w', default: "the image's" }),
        ownFlag('entrypoint', "a program in the place of the image's", { ...value, default: "the image's" }),
        networkFlag,
        ownFlag('runtime', 'the OCI runtime; none for a container without one', {
          ...value,
          default: 'runc or crun, with privilege',
        }),
        subIdsFlag,
        devicesFlag,
        ...limitFlags,
        platformFlag,
      ],
    },
  ],
  notes:
    'The exit code is that of the program, as for run. Options after the image are those of the program. --json lists the changes too.',
  examples: [
    'overlayfs image run ./debian:12 cat /etc/os-release',
    'overlayfs image run --changes --commit mine ./debian:12 sh -c "echo new > /new"',
    'overlayfs image run --network none -v "$PWD":/src:ro ./node:22 node /src/test.js',
  ],
  run,
};
