/** `overlayfs snapshot` */
import { existsSync } from 'node:fs';
import { formatBytes, type Path } from '../paths.js';
import { type Cleanup, type SnapshotInfo, Snapshotter, type SnapshotUsage } from '../snapshots/index.js';
import type { SnapshotMount } from '../snapshots/mounts.js';
import { STORE_FILE } from '../snapshots/store.js';
import { type Command, type Outcome, ownFlag } from './command.js';
import type { Parsed } from './parse.js';
import { UsageError, unknownWord } from './usage-error.js';

type Options = Parsed['options'];

/** A verb, with the least and the most operands that it takes. */
interface Verb {
  readonly least: number;
  readonly most: number;
  /** The flags that it takes besides --root. */
  readonly flags: readonly string[];
  readonly isReading: boolean;
  /** True if it makes a root that is missing. */
  readonly isMaking?: boolean;
  perform(snapshotter: Snapshotter, operands: readonly string[], options: Options): Promise<Outcome>;
}

const show = (text: string): string => formatBytes(text);

/** The labels of --label NAME=VALUE; an empty value deletes one. */
function labelsOf(options: Options): Record<string, string> {
  const given = (options['label'] as string[] | undefined) ?? [];
  return Object.fromEntries(
    given.map((label): [string, string] => {
      const at = label.indexOf('=');
      if (at < 1) throw new UsageError(`--label cannot be '${label}'`, 'Write it as --label NAME=VALUE.');
      return [label.slice(0, at), label.slice(at + 1)];
    }),
  );
}

const mountText = ({ type, source, options }: SnapshotMount): string =>
  `${type} ${show(source)} ${options.map(show).join(',')}\n`;

const toMounts = (mounts: readonly SnapshotMount[]): Outcome => ({
  text: mounts.map(mountText).join(''),
  json: { mounts },
});

const timeText = (nanoseconds: bigint): string => {
  const fraction = (nanoseconds % 1_000_000_000n).toString().padStart(9, '0');
  return new Date(Number(nanoseconds / 1_000_000n)).toISOString().replace(/\.\d+Z$/, `.${fraction}Z`);
};

/** JSON has no whole numbers of this size. */
const toPlain = ({ created, updated, ...rest }: SnapshotInfo): object => ({
  ...rest,
  created: timeText(created),
  updated: timeText(updated),
});

const usageText = ({ size, inodes }: SnapshotUsage): string => `${size} bytes, ${inodes} inodes`;

async function collect(walk: AsyncIterable<SnapshotInfo>): Promise<SnapshotInfo[]> {
  const infos: SnapshotInfo[] = [];
  for await (const info of walk) infos.push(info);
  return infos;
}

function infoText({ name, parent, kind, id, created, updated, labels }: SnapshotInfo): string {
  const lines = [
    `name: ${show(name)}`,
    `kind: ${kind}`,
    ...(parent === '' ? [] : [`parent: ${show(parent)}`]),
    `directory: snapshots/${id}`,
    `created: ${timeText(created)}`,
    `updated: ${timeText(updated)}`,
    ...Object.entries(labels).map(([label, value]) => `label: ${show(label)}=${show(value)}`),
  ];
  return lines.map((line) => `${line}\n`).join('');
}

/** Snapshots nested more deeply are indented no further: the text would grow with the square of the depth. */
const DEEPEST = 50;

function treeText(infos: readonly SnapshotInfo[], usages: ReadonlyMap<string, SnapshotUsage>): string {
  const children = new Map(infos.map(({ name }): [string, SnapshotInfo[]] => [name, []]));
  const roots: SnapshotInfo[] = [];
  // A damaged store may have lost the parent.
  for (const info of infos) (children.get(info.parent) ?? roots).push(info);
  const lines: string[] = [];
  const left = roots.map((info) => ({ info, first: '', rest: '', depth: 0 })).reverse();
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const { info, first, rest, depth } = next;
    const usage = usages.get(info.name);
    lines.push(`${first}${show(info.name)}  ${info.kind}${usage === undefined ? '' : `  ${usageText(usage)}`}\n`);
    const indent = (bar: string) => (depth < DEEPEST ? rest + bar : rest);
    (children.get(info.name) ?? []).toReversed().forEach((child, i) => {
      const [branch, bar] = i === 0 ? ['└─ ', '   '] : ['├─ ', '│  '];
      left.push({ info: child, first: rest + branch, rest: indent(bar), depth: depth + 1 });
    });
  }
  return lines.join('');
}

async function tree(snapshotter: Snapshotter): Promise<Outcome> {
  const infos = await collect(snapshotter.walk());
  const usages = new Map<string, SnapshotUsage>();
  for (const { name, kind } of infos) if (kind !== 'view') usages.set(name, await snapshotter.usage(name));
  const snapshots = infos.map((info) => ({ ...toPlain(info), usage: usages.get(info.name) }));
  return { text: treeText(infos, usages), json: { snapshots } };
}

const toCleanup = ({ removed, kept }: Cleanup): Outcome => ({
  text: removed.map((id) => `${id}\n`).join(''),
  json: { removed, kept: kept.map(({ path }) => path) },
  errors: kept.map(({ error }) => error),
});

const making = (verb: 'prepare' | 'view'): Verb => ({
  least: 1,
  most: 2,
  flags: ['label'],
  isReading: false,
  isMaking: true,
  async perform(snapshotter, [key = '', parent], options) {
    return toMounts(await snapshotter[verb](key, parent, { labels: labelsOf(options) }));
  },
});

const reading = (perform: (snapshotter: Snapshotter, key: string) => Promise<Outcome>): Verb => ({
  least: 1,
  most: 1,
  flags: [],
  isReading: true,
  perform: (snapshotter, [key = '']) => perform(snapshotter, key),
});

const verbs: Readonly<Record<string, Verb>> = {
  prepare: making('prepare'),
  view: making('view'),
  mounts: reading(async (snapshotter, key) => toMounts(await snapshotter.mounts(key))),
  commit: {
    least: 2,
    most: 2,
    flags: ['label', 'parent'],
    isReading: false,
    async perform(snapshotter, [name = '', key = ''], options) {
      const parent = options['parent'] as string | undefined;
      await snapshotter.commit(name, key, { labels: labelsOf(options), ...(parent !== undefined && { parent }) });
      return { json: { name } };
    },
  },
  rm: {
    least: 1,
    most: Number.POSITIVE_INFINITY,
    flags: ['async'],
    isReading: false,
    async perform(snapshotter, keys) {
      const removed: string[] = [];
      const errors: unknown[] = [];
      for (const key of keys) {
        try {
          await snapshotter.remove(key);
          removed.push(key);
        } catch (error) {
          errors.push(error);
        }
      }
      return { json: { removed }, errors };
    },
  },
  ls: {
    least: 0,
    most: Number.POSITIVE_INFINITY,
    flags: [],
    isReading: true,
    async perform(snapshotter, filters) {
      const infos = await collect(snapshotter.walk(filters));
      const lines = infos.map(
        ({ name, kind, parent }) => `${kind} ${show(name)}${parent === '' ? '' : ` ${show(parent)}`}\n`,
      );
      return { text: lines.join(''), json: { snapshots: infos.map(toPlain) } };
    },
  },
  stat: reading(async (snapshotter, key) => {
    const info = await snapshotter.stat(key);
    return { text: infoText(info), json: { ...toPlain(info) } };
  }),
  usage: reading(async (snapshotter, key) => {
    const usage = await snapshotter.usage(key);
    return { text: `${usageText(usage)}\n`, json: { ...usage } };
  }),
  cleanup: {
    least: 0,
    most: 0,
    flags: [],
    isReading: false,
    perform: async (snapshotter) => toCleanup(await snapshotter.cleanup()),
  },
  tree: { least: 0, most: 0, flags: [], isReading: true, perform: tree },
};

const verbNames = Object.keys(verbs);

function toTexts(operands: readonly Path[]): string[] {
  return operands.map((operand) => {
    if (typeof operand === 'string') return operand;
    throw new UsageError(`a key is UTF-8, unlike '${formatBytes(operand)}'`);
  });
}

async function run({ options, operands }: Parsed): Promise<Outcome> {
  const [name, ...rest] = toTexts(operands);
  if (name === undefined) throw new UsageError('say what to do with the snapshots', `One of: ${verbNames.join(', ')}.`);
  const verb = Object.hasOwn(verbs, name) ? verbs[name] : undefined;
  if (verb === undefined) throw unknownWord('there is no verb', name, verbNames);
  if (rest.length < verb.least || rest.length > verb.most) {
    const { least, most } = verb;
    const count = least === most ? `${least}` : `${least} or ${Number.isFinite(most) ? most : 'more'}`;
    throw new UsageError(`snapshot ${name} takes ${count} ${most === 1 ? 'operand' : 'operands'}, not ${rest.length}`);
  }
  const other = ['label', 'parent', 'async'].find((flag) => options[flag] !== undefined && !verb.flags.includes(flag));
  if (other !== undefined) throw new UsageError(`--${other} is of no use for snapshot ${name}`);
  labelsOf(options);
  const root = options['root'] as Path | undefined;
  if (root === undefined) throw new UsageError('--root is missing', 'Name the directory of the snapshots: --root DIR.');
  const snapshotter = await Snapshotter.open(root, {
    // Then a root that is missing is an error.
    readonly: verb.isReading || !(verb.isMaking || existsSync(`${root}/${STORE_FILE}`)),
    asyncRemove: options['async'] === true,
  });
  try {
    return await verb.perform(snapshotter, rest, options);
  } finally {
    await snapshotter.close();
  }
}

export const snapshot: Command = {
  about:
    "Keeps layers as containerd's overlay snapshotter does: a tree of committed snapshots, and active ones to change.",
  usage: [
    'prepare --root DIR [--label NAME=VALUE...] KEY [PARENT]',
    'view --root DIR [--label NAME=VALUE...] KEY [PARENT]',
    'mounts --root DIR KEY',
    'commit --root DIR [--label NAME=VALUE...] [--parent PARENT] NAME KEY',
    'rm --root DIR [--async] KEY...',
    'ls --root DIR [FILTER...]',
    'stat --root DIR KEY',
    'usage --root DIR KEY',
    'cleanup --root DIR',
    'tree --root DIR',
  ],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('root', 'the directory with the snapshots; prepare and view make it', { kind: 'path' }),
        ownFlag('label', 'a label of the snapshot, as NAME=VALUE', { kind: 'names', isList: true }),
        ownFlag('parent', 'the parent of a snapshot that was prepared without one', { kind: 'text' }),
        ownFlag('async', 'leaves the directories to cleanup'),
      ],
    },
  ],
  notes: 'Mounts are printed as TYPE SOURCE OPTIONS. With several filters, one has to match.',
  examples: [
    'overlayfs snapshot prepare --root /srv/snapshots build',
    'overlayfs snapshot commit --root /srv/snapshots base build',
    "overlayfs snapshot ls --root /srv/snapshots 'kind==active,parent==base'",
    'overlayfs snapshot tree --root /srv/snapshots',
  ],
  run,
};
