/** The options of a snapshotter and of its verbs: their types and checks. Pure. */
import { checkBoolean, checkSignal, checkWord, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { checkSync, type Sync } from '../trees/synced.js';
import { invalidArgument } from './errors.js';
import { checkLabels, checkText } from './labels.js';
import type { Labels } from './records.js';

/** Options of `Snapshotter.open`. The names in brackets are those of containerd's configuration. */
export interface SnapshotterOptions {
  /** Reads only: verbs that would change something fail. The root has to exist. Default false. */
  readonly?: boolean;
  /**
   * When something is on the disk. `'all'`: directories are there before their records, and all files of a snapshot
   * before the record that it is committed, syncfs(2); a verb's promise is fulfilled when its record is there. `'store'`,
   * as containerd: the records only. `'none'`: the store is not synced; a crash of the machine may lose what was
   * acknowledged, or damage the store. A crash of the process loses nothing in any case. Default `'all'`.
   */
  fsync?: 'store' | 'all' | 'none';
  /** `remove` leaves the directory to `cleanup` [sync_remove, inverted]. Default false. */
  asyncRemove?: boolean;
  /** Adds the label `containerd.io/snapshot/overlay.upperdir` to each info [upperdir_label]. Default false. */
  upperdirLabel?: boolean;
  /** Options that each overlay gets last, such as `'volatile'` [mount_options]. Default: none. */
  mountOptions?: readonly string[];
  /**
   * Mounts get the id maps of the labels `containerd.io/snapshot/uidmapping` and `gidmapping` as the options `uidmap=`
   * and `gidmap=`. Default: whether the kernel can map the ids of the root's file system (Linux 5.19).
   */
  remapIds?: boolean;
  /** Says in `capabilities` that callers may also change the owners of files one by one [slow_chown]. Default false. */
  slowChown?: boolean;
}

export interface SnapshotOptions {
  /** Names and values, of at most 4,096 bytes together. An empty value counts as no label. */
  labels?: Labels;
}

/** Options of `ensure`. */
export interface EnsureOptions extends SnapshotOptions {
  /** The name of a committed snapshot. Default: none. */
  parent?: string;
  /** Ends the waiting, and undoes the making once `make` has ended. */
  signal?: AbortSignal;
}

export interface SetLabelsOptions {
  /** True: all labels that are not given go. Default: false. */
  replace?: boolean;
}

export interface CommitOptions extends SnapshotOptions {
  /** The name of the committed snapshot. */
  name: string;
  /** The parent of a snapshot that was prepared without one. */
  parent?: string;
  /** `'end'`: the snapshot's files are on the disk before its record, syncfs(2). Default: `'none'`, but `'end'` for a
   * snapshotter with `fsync: 'all'`. */
  sync?: Sync;
}

export type FsyncPolicy = NonNullable<SnapshotterOptions['fsync']>;

export interface CheckedSnapshotterOptions {
  readonly isReadonly: boolean;
  readonly fsync: FsyncPolicy;
  readonly asyncRemove: boolean;
  readonly upperdirLabel: boolean;
  readonly mountOptions: readonly string[];
  readonly remapIds: boolean | undefined;
  readonly slowChown: boolean;
}

const names: ReadonlySet<string> = new Set([
  'readonly',
  'fsync',
  'asyncRemove',
  'upperdirLabel',
  'mountOptions',
  'remapIds',
  'slowChown',
]);

function checkMountOptions(value: unknown): string[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw invalidArgumentType('mountOptions', 'a list of strings', value);
  return Array.from(value, (option, i) => {
    const name = `mountOptions[${i}]`;
    if (typeof option !== 'string') throw invalidArgumentType(name, 'a string', option);
    if (!/^\w[^,\0]*$/.test(option)) throw invalidArgumentValue(name, option, 'must be one option of overlayfs');
    if (/^(lowerdir\+?|upperdir|workdir|datadir\+)(=|$)/.test(option)) {
      throw invalidArgumentValue(name, option, 'cannot name a layer: the snapshot has its own');
    }
    return option;
  });
}

export function checkSnapshotterOptions(options: SnapshotterOptions | undefined): CheckedSnapshotterOptions {
  const given = toOptions(options, names);
  const isTrue = (name: 'readonly' | 'asyncRemove' | 'upperdirLabel' | 'slowChown'): boolean =>
    checkBoolean(given[name], name) ?? false;
  return {
    isReadonly: isTrue('readonly'),
    fsync: checkWord(given.fsync, 'fsync', ['store', 'all', 'none']) ?? 'all',
    asyncRemove: isTrue('asyncRemove'),
    upperdirLabel: isTrue('upperdirLabel'),
    mountOptions: checkMountOptions(given.mountOptions),
    remapIds: checkBoolean(given.remapIds, 'remapIds'),
    slowChown: isTrue('slowChown'),
  };
}

const snapshotNames: ReadonlySet<string> = new Set(['labels']);
const commitNames: ReadonlySet<string> = new Set(['name', 'labels', 'parent', 'sync']);

export const checkSnapshotOptions = (options: SnapshotOptions | undefined): Labels =>
  checkLabels(toOptions(options, snapshotNames).labels, 'labels');

export const checkSetLabelsOptions = (options: SetLabelsOptions | undefined): boolean =>
  checkBoolean(toOptions(options, new Set(['replace'])).replace, 'replace') ?? false;

export function checkEnsureOptions(options: EnsureOptions) {
  const { labels, parent, signal } = toOptions(options, new Set(['labels', 'parent', 'signal']));
  return { labels: checkLabels(labels, 'labels'), parent: checkParent(parent), signal: checkSignal(signal) };
}

export function checkCommitOptions(options: CommitOptions, fsync: FsyncPolicy) {
  const given = toOptions(options, commitNames);
  const syncs = checkSync(given.sync ?? (fsync === 'all' ? 'end' : 'none'));
  const name = checkKey(given.name, 'name');
  return { name, labels: checkLabels(given.labels, 'labels'), parent: checkParent(given.parent), syncs };
}

/** The most bytes of a key, as in containerd's store. */
const MOST_KEY_BYTES = 32768;

export function checkKey(value: unknown, name: string): string {
  const key = checkText(value, name);
  if (key === '') throw invalidArgument(key, `the ${name} is empty`, 'name the snapshot');
  // Programs that read the store with C strings would see another key.
  if (key.includes('\0')) throw invalidArgument(key, `the ${name} holds a NUL`, 'leave it out');
  const size = Buffer.byteLength(key);
  if (size > MOST_KEY_BYTES) {
    throw invalidArgument(key, `the ${name} has ${size} bytes`, `use at most ${MOST_KEY_BYTES}`);
  }
  return key;
}

/** Returns the name of a parent, or `''` for none. */
export const checkParent = (value: unknown): string =>
  value === undefined || value === '' ? '' : checkKey(value, 'parent');
