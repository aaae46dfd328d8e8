/** Layers where openat2(2) is missing: before Linux 5.6, or by a seccomp filter. Filters stay until the process ends. */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { apply, changes, formatChange, merge, pack } from 'overlayfs/layers';
import { kernelTest, makeTree, native, scratch } from '../support/index.js';
import { describeTree } from '../support/trees.js';

const OPENAT2 = 437;

// The filter that is installed last decides on the errno.
for (const code of ['EPERM', 'ENOSYS'] as const) {
  kernelTest(`layers are walked, packed, unpacked and merged without openat2(2) (${code})`, async (t) => {
    const dir = scratch(t);
    const [tree, out, linked] = [join(dir, 'tree'), join(dir, 'out'), join(dir, 'linked')];
    makeTree(tree, { 'a/b/file': 'data' });
    symlinkSync(dir, join(tree, 'link'));
    const wanted = describeTree(tree);
    t.is(native.denyCalls([OPENAT2], constants.errno[code]), 0);

    await apply(pack(tree, { layout: 'plain' }), out);
    t.deepEqual(describeTree(out), wanted);
    const lines: string[] = [];
    for await (const change of changes(tree)) lines.push(formatChange(change));
    t.is(lines.length, 5);

    // A link in the place of a directory leads nowhere.
    mkdirSync(linked);
    symlinkSync(dir, join(linked, 'a'));
    await apply(pack(tree, { layout: 'plain' }), linked, { layout: 'plain' });
    t.deepEqual(describeTree(linked)['a/b/file'], wanted['a/b/file']);
    t.false(Object.keys(describeTree(dir)).includes('b'));

    writeFileSync(join(tree, 'a/b/file'), 'other data');
    await merge(tree, { into: out, root: true });
    t.deepEqual(describeTree(out), describeTree(tree));
  });
}
