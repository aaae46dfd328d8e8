/** `overlayfs snapshot …` */
import { existsSync } from 'node:fs';
import { formatBytes } from '../paths.js';
import type { Cleanup, Leftover, SnapshotInfo, Snapshotter, SnapshotUsage } from '../snapshots/index.js';
import type { SnapshotMount } from '../snapshots/mounts.js';
import { STORE_FILE } from '../snapshots/store.js';
import type { Command, Commands, Outcome, Parsed } from './command.js';
import { type Flag, ownFlag } from './flags.js';
import { toColumn } from './ls.js';
import { toEach } from './rm.js';
import { type RootFlag, rootFlag, rootOf, toNames, withSnapshots } from './store.js';

interface Options extends RootFlag {
  readonly labels?: Record<string, string>;
  readonly parent?: string;
  readonly async?: boolean;
}

/** How a command uses the root: a missing one is made, is an error, or is one unless it holds snapshots. */
type Use = 'making' | 'reading' | 'changing';

interface Description extends Pick<Command, 'about' | 'operands' | 'no' | 'isNoIfEmpty' | 'notes' | 'examples'> {
  readonly use: Use;
  readonly flags?: readonly Flag[];
  perform(snapshotter: Snapshotter, names: readonly string[], options: Options): Promise<Outcome>;
}

const toCommand = ({ use, flags = [], perform, ...description }: Description): Command<Options> => ({
  ...description,
  groups: [{ title: 'options', flags: [rootFlag, ...flags] }],
  async run({ options, operands }: Parsed<Options>) {
    const names = toNames(operands);
    const readonly = use === 'reading' || (use === 'changing' && !existsSync(`${rootOf(options)}/${STORE_FILE}`));
    return withSnapshots(options, { readonly, asyncRemove: options.async === true }, (snapshotter) =>
      perform(snapshotter, names, options),
    );
  },
});

const labelFlag = ownFlag('labels', 'a label of the snapshot', { spelling: 'label', kind: 'pair', isList: true });

const show = (text: string): string => formatBytes(text);

const mountText = ({ type, source, options }: SnapshotMount): string =>
  `${type} ${show(source)} ${options.map(show).join(',')}\n`;

const toMounts = (mounts: readonly SnapshotMount[]): Outcome => ({
  text: mounts.map(mountText).join(''),
  json: { mounts },
});

/** A time in ISO 8601, with its nanoseconds. */
const timeText = (time: Date, nanoseconds: string): string =>
  time.toISOString().replace(/\d+Z$/, `${nanoseconds.slice(-9)}Z`);

const toPlain = ({ created, createdNs, updated, updatedNs, ...rest }: SnapshotInfo): object => ({
  ...rest,
  created: timeText(created, createdNs),
  updated: timeText(updated, updatedNs),
});

const usageText = ({ bytes, inodes }: SnapshotUsage): string => `${bytes} bytes, ${inodes} inodes`;

function infoText({ name, parent, kind, id, created, createdNs, updated, updatedNs, labels }: SnapshotInfo): string {
  const lines = [
    `name: ${show(name)}`,
    `kind: ${kind}`,
    ...(parent === '' ? [] : [`parent: ${show(parent)}`]),
    `directory: snapshots/${id}`,
    `created: ${timeText(created, createdNs)}`,
    `updated: ${timeText(updated, updatedNs)}`,
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

/** The snapshots, with the error of a damaged store after what is left of it. */
async function collect(walk: AsyncIterable<SnapshotInfo>): Promise<{ infos: SnapshotInfo[]; errors: unknown[] }> {
  const infos: SnapshotInfo[] = [];
  try {
    for await (const info of walk) infos.push(info);
  } catch (error) {
    return { infos, errors: [error] };
  }
  return { infos, errors: [] };
}

async function tree(snapshotter: Snapshotter): Promise<Outcome> {
  const { infos, errors } = await collect(snapshotter.list());
  const usages = new Map<string, SnapshotUsage>();
  for (const { name, kind } of errors.length === 0 ? infos : []) {
    if (kind !== 'view') usages.set(name, await snapshotter.usage(name));
  }
  const snapshots = infos.map((info) => ({ ...toPlain(info), usage: usages.get(info.name) }));
  return { text: treeText(infos, usages), json: { snapshots }, errors };
}

async function list(snapshotter: Snapshotter, filters: readonly string[]): Promise<Outcome> {
  const { infos, errors } = await collect(snapshotter.list(filters));
  const rows = infos.map((info) => {
    const { kind, name, parent } = info;
    return { text: `${kind} ${toColumn(name)}${parent === '' ? '' : ` ${toColumn(parent)}`}\n`, json: toPlain(info) };
  });
  return { rows, errors };
}

function leftText({ path, maker }: Leftover): string {
  const who = maker === undefined ? '' : ` of process ${maker.pid}, ${show(maker.program)}, made ${show(maker.made)}`;
  return `${show(path)}${who}\n`;
}

const toCleanup = ({ removed, left, kept }: Cleanup): Outcome => ({
  text: removed.map((id) => `${id}\n`).join('') + left.map(leftText).join(''),
  json: { removed, left, kept: kept.map(({ path }) => path) },
  errors: kept.map(({ error }) => error),
});

const making = (verb: 'prepare' | 'view', about: string, example: string) =>
  toCommand({
    about,
    operands: '<KEY> [PARENT]',
    use: 'making',
    flags: [labelFlag],
    notes: 'Mounts are printed as TYPE SOURCE OPTIONS.',
    examples: [`overlayfs snapshot ${verb} ${example}`],
    async perform(snapshotter, [key = '', parent], { labels = {} }) {
      return toMounts(await snapshotter[verb](key, parent, { labels }));
    },
  });

const reading = (description: Omit<Description, 'use' | 'operands' | 'perform'>, perform: Description['perform']) =>
  toCommand({ ...description, operands: '<KEY>', use: 'reading', perform });

/** The commands, which keep layers as containerd's overlay snapshotter does. */
export const snapshots: Commands = {
  'snapshot prepare': making('prepare', 'Makes a snapshot to change, and prints its mount.', 'build base'),
  'snapshot view': making('view', 'Makes a snapshot to read, and prints its mount.', 'look base'),
  'snapshot mounts': reading(
    { about: 'Prints the mount of a snapshot again.', examples: ['overlayfs snapshot mounts build'] },
    async (snapshotter, [key = '']) => toMounts(await snapshotter.mounts(key)),
  ),
  'snapshot commit': toCommand({
    about: 'Makes the changed snapshot KEY a committed one, NAME.',
    operands: '<NAME> <KEY>',
    use: 'changing',
    flags: [
      labelFlag,
      ownFlag('parent', 'the parent of a snapshot that was prepared without one', { kind: 'text', default: 'none' }),
    ],
    examples: ['overlayfs snapshot commit base build', 'overlayfs snapshot commit --label job=17 base build'],
    async perform(snapshotter, [name = '', key = ''], { labels = {}, parent }) {
      await snapshotter.commit(key, { name, labels, ...(parent !== undefined && { parent }) });
      return { json: { name } };
    },
  }),
  'snapshot ls': toCommand({
    about: 'Lists snapshots: kind, name and parent, a line each.',
    operands: '[FILTER...]',
    use: 'reading',
    notes: 'With several filters, one has to match. A blank in a column is \\040.',
    no: 'no snapshot was found',
    isNoIfEmpty: true,
    examples: ['overlayfs snapshot ls', "overlayfs snapshot ls 'kind==active,parent==base'"],
    perform: list,
  }),
  'snapshot tree': toCommand({
    about: 'Draws parents and children with their sizes.',
    use: 'reading',
    examples: ['overlayfs snapshot tree --root /srv/snapshots'],
    perform: tree,
  }),
  'snapshot stat': reading(
    { about: 'Shows what is known of a snapshot.', examples: ['overlayfs snapshot stat base'] },
    async (snapshotter, [key = '']) => {
      const info = await snapshotter.stat(key);
      return { text: infoText(info), json: { ...toPlain(info) } };
    },
  ),
  'snapshot usage': reading(
    { about: 'Shows the space that a snapshot takes.', examples: ['overlayfs snapshot usage base'] },
    async (snapshotter, [key = '']) => {
      const usage = await snapshotter.usage(key);
      return { text: `${usageText(usage)}\n`, json: { ...usage } };
    },
  ),
  'snapshot rm': toCommand({
    about: 'Removes snapshots.',
    operands: '<KEY...>',
    use: 'changing',
    flags: [ownFlag('async', 'leaves the directories to cleanup')],
    examples: ['overlayfs snapshot rm build base'],
    async perform(snapshotter, keys) {
      const { done, errors } = await toEach(keys, (key) => snapshotter.remove(key));
      return { json: { removed: done }, errors };
    },
  }),
  'snapshot cleanup': toCommand({
    about: 'Removes directories that no snapshot has, and leftovers of killed processes, and prints which.',
    use: 'changing',
    examples: ['overlayfs snapshot cleanup --root /srv/snapshots'],
    perform: async (snapshotter) => toCleanup(await snapshotter.cleanup()),
  }),
};
