/** `overlayfs run-image` */
import type { ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants } from 'node:os';
import { type Image, openLayout, runContainer, type Volume } from '../images/index.js';
import { formatChanges } from '../layers/changes.js';
import { type Path, toAbsolute } from '../paths.js';
import { Snapshotter } from '../snapshots/index.js';
import { type Command, type Outcome, ownFlag } from './command.js';
import { kebab } from './flags.js';
import type { Parsed } from './parse.js';
import { ProgressBar } from './progress.js';
import { networkFlag, notStarted, passSignals, toTexts } from './run.js';
import { UsageError } from './usage-error.js';

type Options = Parsed['options'];

const NONE = 'none';

/** Takes LAYOUT:TAG apart. Both may have colons: the longest path that exists is the layout. */
function toReference(operand: Path): { layout: Path; tag: string | undefined } {
  if (typeof operand !== 'string' || existsSync(operand)) return { layout: operand, tag: undefined };
  const colons = Array.from(operand.matchAll(/:/g), ({ index }) => index);
  const at = colons.findLast((colon) => existsSync(operand.slice(0, colon))) ?? colons[0] ?? 0;
  if (at === 0) return { layout: operand, tag: undefined };
  return { layout: operand.slice(0, at), tag: operand.slice(at + 1) };
}

const listOf = (options: Options, name: string): readonly string[] => (options[name] as string[] | undefined) ?? [];

function toVariables(options: Options): Record<string, string> {
  return Object.fromEntries(
    listOf(options, 'env').map((text): [string, string] => {
      const at = text.indexOf('=');
      if (at < 1) throw new UsageError(`--env cannot be '${text}'`, 'Write it as --env NAME=VALUE.');
      return [text.slice(0, at), text.slice(at + 1)];
    }),
  );
}

const toVolumes = (options: Options): Volume[] =>
  listOf(options, 'volume').map((text) => {
    const [source = '', target = '', access, ...more] = text.split(':');
    const isRight = source !== '' && target.startsWith('/') && more.length === 0;
    if (!isRight || (access !== undefined && access !== 'ro')) {
      throw new UsageError(`--volume cannot be '${text}'`, 'Write it as --volume DIR:PATH or --volume DIR:PATH:ro.');
    }
    return { source, target, readonly: access === 'ro' };
  });

/** Returns the options of `runContainer` that are texts. */
const textsOf = (options: Options): Record<string, unknown> =>
  Object.fromEntries(['user', 'cwd', 'commit'].flatMap((name) => (name in options ? [[name, options[name]]] : [])));

const imageJson = ({ digest, tag }: Image): object => ({ digest, tag });

async function run({ options, operands }: Parsed): Promise<Outcome> {
  const [reference, ...rest] = operands;
  if (reference === undefined) throw new UsageError('name the image: LAYOUT:TAG');
  const root = options['root'] as Path | undefined;
  if (root === undefined) throw new UsageError('--root is missing', 'Name the directory of the snapshots: --root DIR.');
  const command = toTexts(rest);
  const [env, volumes] = [toVariables(options), toVolumes(options)];
  const { layout, tag } = toReference(reference);
  const { platform, runtime, entrypoint } = options as Readonly<Record<string, string | undefined>>;
  const image = await (await openLayout(toAbsolute(layout))).image(tag, { platform });
  const isJson = options['json'] === true;
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
  const bar = new ProgressBar(isJson);
  const snapshotter = await Snapshotter.open(root);
  try {
    const {
      exitCode,
      changes,
      image: committed,
    } = await runContainer(image, {
      snapshotter,
      signal: controller.signal,
      ...(command.length > 0 && { command }),
      ...(entrypoint !== undefined && { entrypoint: [entrypoint] }),
      ...textsOf(options),
      env,
      volumes,
      network: options['network'] !== false,
      subIds: options['subIds'] === true,
      ...(runtime !== undefined && { runtime: runtime === NONE ? false : runtime }),
      stdio: isJson ? ['inherit', 2, 2] : 'inherit',
      onProgress: ({ entries, read, total }) =>
        bar.show({ entries, bytes: read, share: total === 0 ? undefined : read / total }),
      onStart: (container) => {
        bar.end();
        child = container.process;
      },
    });
    const lines = options['changes'] === true ? changes.map((change) => `${formatChanges(change)}\n`) : [];
    const json = { exitCode, changes, ...(committed !== undefined && { image: imageJson(committed) }) };
    return { text: lines.join(''), json, exitCode };
  } catch (error) {
    const exitCode = interrupt === undefined ? notStarted(error) : 128 + constants.signals[interrupt];
    if (exitCode === undefined) throw error;
    return { json: {}, errors: [error], exitCode };
  } finally {
    bar.end();
    await snapshotter.close();
  }
}

const value = { kind: 'text' } as const;

export const runImage: Command = {
  about:
    'Runs an image of an OCI layout as a container: unpacks its layers into snapshots, mounts them, and runs the program ' +
    'that the image names. With privilege, runc or crun makes the container, if there is one. Without, it is a user ' +
    'namespace of the calling user.',
  usage: ['--root DIR [OPTION...] LAYOUT[:TAG] [-- COMMAND [ARG...]]'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('root', 'the directory with the snapshots, which is made if it is missing', { kind: 'path' }),
        ownFlag('commit', 'commits the container as an image with this tag', { ...value, default: 'it is discarded' }),
        ownFlag('changes', 'prints what the container has changed'),
        ownFlag('env', 'a variable, as NAME=VALUE', { kind: 'names', isList: true, default: NONE }),
        ownFlag('volume', 'a directory that the container sees, as DIR:PATH or DIR:PATH:ro', {
          kind: 'names',
          isList: true,
          default: NONE,
        }),
        ownFlag('user', 'the user, as NAME, ID, NAME:GROUP or ID:GROUP', { ...value, default: "the image's" }),
        ownFlag('cwd', 'where the program starts', { ...value, default: "the image's" }),
        ownFlag('entrypoint', "a program in the place of the image's", { ...value, default: "the image's" }),
        networkFlag,
        ownFlag('runtime', 'the OCI runtime; none for a container without one', {
          ...value,
          default: 'runc or crun, with privilege',
        }),
        ownFlag('subIds', 'maps the subordinate ids of the user too, by newuidmap(1) and newgidmap(1)'),
        ownFlag('platform', 'the platform of the image, such as linux/arm64', { ...value, default: 'this one' }),
      ],
    },
  ],
  notes: `The exit code is that of the program, as for run. --${kebab('json')} lists the changes too.`,
  examples: [
    'overlayfs run-image --root ~/.snapshots ./debian:12 -- cat /etc/os-release',
    'overlayfs run-image --root ~/.snapshots --changes --commit mine ./debian:12 -- sh -c "echo new > /new"',
    'overlayfs run-image --root ~/.snapshots --no-network --volume "$PWD":/src:ro ./node:22 -- node /src/test.js',
  ],
  hasArguments: true,
  run,
};
