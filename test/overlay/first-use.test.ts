/**
 * Each row of docs/errors.md about a mount's files, but for fs-verity, which few kernels have. Imports internals: Node
 * has no call for extended attributes.
 */
import { chmodSync, mkdirSync, openSync, readFileSync, renameSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { mountOverlaySync, type OverlayOptions, whiteoutSync } from 'overlayfs';
import { calls } from '#lib/kernel/calls.js';
import * as k from '#lib/kernel/constants.js';
import { performSync, StepFailure } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';
import { type Feature, layers, makeTree, mountTest, native, scratch } from '../support/index.js';

/** Options to add; undefined takes one away. */
type Changes = { readonly [Name in keyof OverlayOptions]?: OverlayOptions[Name] | undefined };

interface Place {
  readonly dir: string;
  readonly lower: string;
  readonly upper: string;
}

/** Mounts, with what `prepare` has made, and looks what `act` answers. */
function answers(
  code: string | undefined,
  options: (at: Place) => Changes,
  prepare: (at: Place) => void,
  act: (merged: string, at: Place) => unknown,
  on: 'tmpfs' | 'disk' = 'tmpfs',
) {
  return (t: ExecutionContext) => {
    const dir = scratch(t, on);
    const set = layers(dir);
    const place = { dir, lower: set.lowerdir, upper: set.upperdir };
    makeTree(set.lowerdir, { 'tree/file': 'content', 'empty/': '' });
    prepare(place);
    const mounted = mountOverlaySync({ ...set, ...options(place) } as OverlayOptions);
    try {
      t.is(
        codeOf(() => act(set.target, place)),
        code,
      );
    } finally {
      mounted.unmountSync({ detach: true });
    }
  };
}

function codeOf(act: () => unknown): string | undefined {
  try {
    act();
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code;
  }
}

const nothing = (): void => {};
const none = (): Changes => ({});
const rename = (merged: string): void => renameSync(join(merged, 'tree'), join(merged, 'other'));

mountTest('first use: a directory of a lower layer is renamed', answers('EXDEV', none, nothing, rename));

mountTest(
  'first use: the same with redirectDir',
  answers(undefined, () => ({ redirectDir: 'on' }), nothing, rename),
);

const small = ({ dir }: Place) => ({ upperdir: join(dir, 'small/upper'), workdir: join(dir, 'small/work') });

mountTest(
  'first use: a file that the upper has no room for',
  answers(
    'ENOSPC',
    small,
    ({ dir, lower }) => {
      mkdirSync(join(dir, 'small'));
      native.mount('small', join(dir, 'small'), 'tmpfs', 0, 'size=256k');
      makeTree(join(dir, 'small'), { 'upper/': '', 'work/': '' });
      writeFileSync(join(lower, 'large'), Buffer.alloc(1 << 20, 1));
    },
    (merged) => openSync(join(merged, 'large'), 'r+'),
  ),
);

mountTest(
  'first use: a write in a view',
  answers(
    'EROFS',
    ({ dir, lower }) => ({ lowerdir: [lower, join(dir, 'upper')], upperdir: undefined, workdir: undefined }),
    nothing,
    (merged) => writeFileSync(join(merged, 'new'), ''),
  ),
);

mountTest(
  'first use: a file that was copied up with metacopy, without it',
  answers(
    'EPERM',
    () => ({ metacopy: false }),
    ({ dir }) => {
      const mounted = mountOverlaySync({ ...layers(dir), metacopy: true });
      chmodSync(join(dir, 'merged/tree/file'), 0o600);
      mounted.unmountSync();
    },
    (merged) => readFileSync(join(merged, 'tree/file')),
  ),
);

mountTest(
  'first use: a whiteout through the mount',
  answers('EPERM', none, nothing, (merged) => {
    const plan = new Plan();
    plan.add(calls.mknodat, [k.AT_FDCWD, join(merged, 'gone'), 0o020000, 0]);
    const outcome = performSync(plan);
    if (outcome instanceof StepFailure) throw Object.assign(new Error(), { code: outcome.errno === 1 ? 'EPERM' : '' });
  }),
);

mountTest(
  'first use: a directory that looks empty and holds a whiteout',
  answers(
    'ENOTEMPTY',
    none,
    ({ upper }) => {
      mkdirSync(join(upper, 'own'));
      whiteoutSync(join(upper, 'own/gone'));
    },
    (merged) => rmdirSync(join(merged, 'own')),
  ),
);

const mapped: Feature = 'idmapped layers';
for (const [title, first, mode, code] of [
  ['a file whose owner has no id in the map', 5, 0o666, 'EACCES'],
  ['the same with a range that holds the owner', 0, 0o644, undefined],
] as const) {
  mountTest(
    `first use: ${title}`,
    { needs: mapped },
    answers(
      code,
      () => ({ idmap: { lowerdir: [{ container: first, host: first, size: 10 }] } }),
      ({ lower }) => chmodSync(join(lower, 'tree/file'), mode),
      (merged) => writeFileSync(join(merged, 'tree/file'), 'new'),
      'disk',
    ),
  );
}
