/** Each public function as root of a user namespace, `unshare -Urm node …`: it works, or says what cannot be had. */
import { chownSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import * as overlayfs from 'overlayfs';
import { type Feature, makeTree, mountTest, scratch } from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { asNobody, evaluateAs } from '../support/plain-user.js';
import { withoutProc } from '../support/without-proc.js';

interface Row {
  /** The functions, and methods, that it is about. */
  readonly of: readonly string[];
  readonly title: string;
  /** Runs with `layers`, an overlay's without a target, and `target`, a fresh directory. */
  readonly code: string;
  /** The result, or the reason of the error. */
  readonly outcome: unknown;
  readonly needs?: Feature;
}

const rows: readonly Row[] = [
  {
    of: ['mountOverlay', 'unmount'],
    title: 'an overlay with a target',
    code: `fs.rmdirSync(layers.workdir);
      const mount = await overlayfs.mountOverlay({ ...layers, target, create: true });
      fs.writeFileSync(join(target, 'new'), 'new');
      fs.rmSync(join(target, 'tree'), { recursive: true });
      fs.mkdirSync(join(target, 'tree'));
      const seen = [fs.readdirSync(target), fs.readdirSync(join(target, 'tree'))];
      await mount.unmount();
      return [...seen, fs.readdirSync(target), fs.existsSync(layers.workdir)];`,
    outcome: [['file', 'new', 'tree'], [], [], false],
  },
  {
    of: [],
    title: 'a layer and a workdir that are removed',
    code: `const mount = await overlayfs.mountOverlay({ ...layers, target });
      fs.rmSync(join(target, 'file'));
      const error = await remove(layers.workdir).catch(({ reason }) => reason);
      await mount.unmount();
      await remove(layers.workdir);
      await remove(layers.upperdir);
      return [error, fs.existsSync(layers.workdir), fs.existsSync(layers.upperdir)];`,
    outcome: ['layer-in-use', false, false],
  },
  {
    of: ['mountOverlaySync', 'unmountSync'],
    title: 'the synchronous forms',
    code: `overlayfs.mountOverlaySync({ ...layers, target });
      const names = fs.readdirSync(target);
      overlayfs.unmountSync(target);
      return [names, fs.readdirSync(target)];`,
    outcome: [['file', 'tree'], []],
  },
  ...(['true', "'keep'", "'auto'"] as const).map((rootless) => ({
    of: ['mountOverlay'],
    title: `rootless: ${rootless}, in namespaces inside`,
    code: `const mount = await overlayfs.mountOverlay({ ...layers, rootless: ${rootless} });
      fs.writeFileSync(join(mount.path, 'file'), 'changed');
      const seen = [fs.readFileSync(join(layers.upperdir, 'file'), 'utf8'), mount.isRootless];
      await mount.unmount();
      return seen;`,
    outcome: ['changed', rootless !== "'auto'"],
  })),
  {
    of: ['mountOverlay'],
    title: 'options that need trusted.* attributes',
    code: `return overlayfs.mountOverlay({ ...layers, target, metacopy: true });`,
    outcome: 'conflicting-options',
  },
  {
    of: ['mountOverlay'],
    title: 'idmap: the file system belongs to the initial user namespace',
    code: `return overlayfs.mountOverlay({ ...layers, target, idmap: [{ container: 0, host: 0, size: 1 }] });`,
    outcome: 'no-privilege',
  },
  {
    of: ['bind', 'bindSync'],
    title: 'a bind mount, recursive where there are mounts inside',
    code: `const mount = await overlayfs.bind(layers.lowerdir, target, { readonly: true });
      const names = fs.readdirSync(target);
      await mount.unmount();
      overlayfs.bindSync(layers.lowerdir, target).unmountSync();
      return names;`,
    outcome: ['file', 'tree'],
  },
  {
    of: ['listMounts'],
    title: 'the mounts of another mount namespace',
    code: `const { spawn } = await import('node:child_process');
      const other = spawn('unshare', ['--mount', 'sh', '-c', 'echo; cat'], { stdio: ['pipe', 'pipe', 'ignore'] });
      await new Promise((resolve) => other.stdout.once('data', resolve));
      const namespace = '/proc/' + other.pid + '/ns/mnt';
      const mount = await overlayfs.mountOverlay({ ...layers, target, namespace });
      const { length } = await overlayfs.listMounts({ target, namespace });
      const seen = fs.readdirSync(target).length;
      await mount.unmount();
      other.stdin.end();
      return [length, seen];`,
    outcome: [1, 0],
  },
  {
    of: ['unmount', 'unmountSync'],
    title: 'all below a directory',
    code: `const all = [];
      for (const take of [overlayfs.unmount, async (...args) => overlayfs.unmountSync(...args)]) {
        overlayfs.mountOverlaySync({ ...layers, target });
        overlayfs.bindSync(layers.lowerdir, join(target, 'tree'));
        await take(target, { recursive: true });
        all.push(fs.readdirSync(target).length);
      }
      return all;`,
    outcome: [0, 0],
  },
  {
    of: ['unmount'],
    title: 'what was mounted outside stays',
    code: `return overlayfs.unmount('/proc');`,
    outcome: 'mount-locked',
  },
  {
    of: ['findHolders'],
    title: 'who holds a mount',
    code: `const mount = await overlayfs.mountOverlay({ ...layers, target });
      const fd = fs.openSync(join(target, 'file'));
      const { holders } = await overlayfs.findHolders(mount, { timeout: 30_000 });
      const busy = await mount.unmount().catch(({ reason }) => reason);
      fs.closeSync(fd);
      await mount.unmount();
      return [holders.map(({ pid }) => pid === process.pid), busy];`,
    outcome: [[true], 'mount-busy'],
  },
  {
    of: ['listMounts', 'listMountsSync', 'findMount', 'findMountSync'],
    title: 'the mount table',
    code: `const mount = await overlayfs.mountOverlay({ ...layers, target });
      const found = [
        ...await overlayfs.listMounts({ target }), ...overlayfs.listMountsSync({ target }),
        await overlayfs.findMount(target), overlayfs.findMountSync(target),
      ];
      await mount.unmount();
      return found.map((entry) => [entry.type, entry.target === target]);`,
    outcome: Array(4).fill(['overlay', true]),
  },
  {
    of: ['watchMounts'],
    title: 'what is mounted and unmounted',
    code: `const events = overlayfs.watchMounts()[Symbol.asyncIterator]();
      const first = events.next();
      await new Promise((resolve) => setTimeout(resolve, 100));
      const mount = await overlayfs.mountOverlay({ ...layers, target });
      const { value } = await first;
      await events.return();
      await mount.unmount();
      return [value.type, value.mount.target === target];`,
    outcome: ['mounted', true],
  },
  {
    of: ['whiteout', 'whiteoutSync', 'isWhiteout', 'isWhiteoutSync'],
    title: 'whiteouts in a layer',
    code: `const [a, b] = ['a', 'b'].map((name) => join(layers.upperdir, name));
      await overlayfs.whiteout(a);
      overlayfs.whiteoutSync(b);
      return [await overlayfs.isWhiteout(a), overlayfs.isWhiteoutSync(b), await overlayfs.isWhiteout(layers.upperdir)];`,
    outcome: [true, true, false],
  },
  {
    of: ['makeOpaque', 'makeOpaqueSync', 'isOpaque', 'isOpaqueSync'],
    title: 'opaque directories, by user.* attributes',
    code: `const [a, b] = ['a', 'b'].map((name) => join(layers.upperdir, name));
      for (const each of [a, b]) fs.mkdirSync(each);
      await overlayfs.makeOpaque(a, { userxattr: true });
      overlayfs.makeOpaqueSync(b, { userxattr: true });
      return [await overlayfs.isOpaque(a, { userxattr: true }), overlayfs.isOpaqueSync(b, { userxattr: true })];`,
    outcome: [true, true],
  },
  {
    of: ['makeOpaque'],
    title: 'opaque directories, by trusted.* attributes',
    code: `return overlayfs.makeOpaque(layers.upperdir, { userxattr: false });`,
    outcome: 'xattr-denied',
  },
  {
    of: ['features', 'featuresSync'],
    title: 'what can be had here',
    code: `return [await overlayfs.features(), overlayfs.featuresSync()].map(({ mayMount, userNamespace, rootless, rootlessForbidden }) => [mayMount, userNamespace, rootless, rootlessForbidden ?? '']);`,
    outcome: Array(2).fill([true, true, true, '']),
  },
  {
    of: ['explain'],
    title: 'what is in the way of a mount',
    code: `const all = [];
      for (const change of [{ target }, { rootless: true }, { target, lowerdir: join(dir, 'none') }]) {
        const { ok, complete, findings } = await overlayfs.explain({ ...layers, ...change });
        all.push([ok, complete, ...findings.map(({ reason }) => reason)]);
      }
      return all;`,
    outcome: [
      [true, true],
      [true, true],
      [false, true, 'lower-missing'],
    ],
  },
  {
    of: ['spawn'],
    title: 'a program that sees a mount at a place',
    code: `const seen = [];
      for (const rootless of [false, true]) {
        const mount = await overlayfs.mountOverlay({ ...layers, rootless });
        const child = overlayfs.spawn('sh', ['-c', 'cat file; pwd; id -u'], { mounts: [{ source: mount, target }], cwd: target });
        let text = '';
        child.stdout.on('data', (piece) => (text += piece));
        seen.push(await new Promise((resolve, reject) => child.on('error', reject).on('close', (code) => resolve([code, text.replace(target, 'AT')]))));
        await mount.unmount();
      }
      return seen;`,
    outcome: Array(2).fill([0, 'fileAT\n0\n']),
  },
  {
    of: ['run'],
    title: 'a program that is waited for',
    code: `const seen = [];
      for (const rootless of [false, true]) {
        const mount = await overlayfs.mountOverlay({ ...layers, rootless });
        const { exitCode, stdout } = await overlayfs.run('sh', ['-c', 'echo new > file; cat file; id -u'], { mounts: [{ source: mount, target }], cwd: target });
        seen.push([exitCode, stdout]);
        await mount.unmount();
      }
      return seen;`,
    outcome: Array(2).fill([0, 'new\n0\n']),
  },
  {
    of: ['Mount', 'OverlayMount'],
    title: 'a detached mount that is cloned',
    code: `const mount = await overlayfs.mountOverlay(layers);
      const clone = await mount.clone();
      const names = fs.readdirSync(clone.path);
      clone.unmountSync();
      mount.unmountSync();
      return names;`,
    outcome: ['file', 'tree'],
    needs: 'detached mounts that can be cloned',
  },
  {
    of: ['Mount', 'OverlayMount'],
    title: 'a detached mount that is attached, looked at, and made read-only',
    code: `const mount = await overlayfs.mountOverlay(layers);
      await mount.attach(target);
      const { upperdir } = await mount.effective();
      await mount.remount({ readonly: true });
      const error = (() => { try { fs.writeFileSync(join(target, 'new'), ''); } catch ({ code }) { return code; } })();
      await mount.unmount();
      return [upperdir === layers.upperdir, error];`,
    outcome: [true, 'EROFS'],
    needs: 'mountSetattr',
  },
  {
    of: ['Mount', 'OverlayMount'],
    title: 'a mount that is replaced',
    code: `const mount = await overlayfs.mountOverlay({ ...layers, target });
      await mount.replace({ lowerdir: [layers.lowerdir, layers.upperdir] });
      const { upperdir } = mount.options;
      await mount.unmount();
      return [upperdir ?? ''];`,
    outcome: [''],
    needs: 'mountBeneath',
  },
];

const inside: Readonly<Record<string, readonly string[]>> = {
  'a plain user': [...asNobody, 'unshare', '-Urm'],
  root: ['env', '-u', 'NODE_V8_COVERAGE', 'unshare', '-Urm'],
};

function makeLayers(dir: string, who: string): void {
  makeTree(dir, { 'lower/file': 'file', 'lower/tree/x': 'x', 'upper/': '', 'work/': '', 'merged/': '' });
  if (who === 'root') return;
  const all = ['', 'lower', 'lower/file', 'lower/tree', 'lower/tree/x', 'upper', 'work', 'merged'];
  for (const name of all) chownSync(join(dir, name), NOBODY, NOBODY);
}

for (const [who, command] of Object.entries(inside)) {
  for (const root of ['', ', with a read-only root']) {
    mountTest(
      `in a user namespace of ${who}, without /proc${root}: a removed directory can be made again`,
      { needs: ['rootless', 'programs without /proc'] },
      (t) => {
        const dir = scratch(t, 'disk');
        makeLayers(dir, who);
        const readOnlyRoot = ['sh', '-ec', `mount --bind ${dir} ${dir}; mount -o remount,bind,ro /; exec "$@"`, 'sh'];
        const places = [...withoutProc, ...(root === '' ? [] : readOnlyRoot)];
        const body = `const [lowerdir, upperdir, workdir, target] = args;
          overlayfs.mountOverlaySync({ lowerdir, upperdir, workdir, target });
          fs.rmSync(join(target, 'tree'), { recursive: true });
          fs.mkdirSync(join(target, 'tree'));
          return fs.readdirSync(join(target, 'tree'));`;
        const paths = ['lower', 'upper', 'work', 'merged'].map((name) => join(dir, name));
        t.deepEqual(evaluateAs([...command, ...places], body, ...paths), []);
      },
    );
  }
}

for (const [who, command] of Object.entries(inside)) {
  for (const { title, code, outcome, needs = 'rootless' } of rows) {
    mountTest(`in a user namespace of ${who}: ${title}`, { needs: ['rootless', needs] }, (t) => {
      const dir = scratch(t, 'disk');
      makeLayers(dir, who);
      const body = `const [dir] = args;
        const layers = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
        const target = join(dir, 'merged');
        try { return await (async () => { ${code} })(); } catch (error) { return error.reason ?? String(error); }`;
      t.deepEqual(evaluateAs(command, body, dir), outcome);
    });
  }
}

test('each public function is in a row', (t) => {
  const named = new Set(rows.flatMap(({ of }) => of));
  t.deepEqual(
    Object.keys(overlayfs).filter((name) => !named.has(name)),
    ['OverlayError', 'ProgramError'],
  );
});
