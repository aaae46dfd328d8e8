/**
 * mount.overlay, through the real mount(8): with a link in /sbin, in the mount namespace of this test file. Imports
 * internals: it reads the mount table as options.
 */
import { spawn, spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { exitCodes } from '#lib/mount-helper/run.js';
import { splitShown } from '#lib/mount-strings.js';
import { readMountinfo } from '#lib/mount-table/mountinfo.js';
import { readShown } from '#lib/options/text.js';
import type { Ran } from '../cli/run.js';
import {
  eventually,
  MNT_DETACH,
  MS_BIND,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  packageRoot,
  scratch,
  withoutCapabilities,
} from '../support/index.js';

const sbin = realpathSync('/sbin');
const helper = join(packageRoot, 'dist/mount-helper.cjs');

interface Place {
  readonly dir: string;
  /** mount(8), in the directory. */
  readonly mount: (...args: string[]) => Ran;
  readonly umount: () => void;
  /** `mount -t overlay src -o OPTIONS m`. */
  readonly overlay: (options: string, ...more: string[]) => Ran;
  /** The mount at m. */
  readonly mounted: () => { mount: string; super: string } | undefined;
}

function run(cwd: string, command: readonly string[], env: NodeJS.ProcessEnv = {}): Ran {
  const [first = '', ...rest] = command;
  const { status, stdout, stderr } = spawnSync(first, rest, {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, LC_ALL: 'C', ...env },
  });
  return { code: status, stdout: stdout.replaceAll(cwd, '.'), stderr: stderr.replaceAll(cwd, '.') };
}

/**
 * Layers a, b, u, w, and a target m; with mount.overlay in /sbin. The programs of /sbin, such as mkfs.ext4, are hidden
 * until the test ends: run them before.
 */
function place(t: ExecutionContext): Place {
  const dir = scratch(t);
  makeTree(dir, { 'a/in-a': '', 'b/in-b': '', 'u/': '', 'w/': '', 'm/': '', 'bin/': '' });
  symlinkSync(helper, join(dir, 'bin/mount.overlay'));
  t.is(native.mount(join(dir, 'bin'), sbin, '', MS_BIND, ''), 0);
  t.teardown(() => native.umount(sbin, MNT_DETACH));
  const mount = (...args: string[]) => run(dir, ['mount', ...args]);
  return {
    dir,
    mount,
    umount: () => t.is(native.umount(join(dir, 'm'), 0), 0),
    overlay: (options, ...more) => mount('-t', 'overlay', 'src', '-o', options, ...more, 'm'),
    mounted: () => {
      const entry = readMountinfo().findLast(({ target }) => target.toString() === join(dir, 'm'));
      return entry && { mount: entry.mountOptions, super: entry.superOptions.toString('latin1') };
    },
  };
}

const silent = { code: 0, stdout: '', stderr: '' };
const merged = 'lowerdir=a,upperdir=u,workdir=w';

mountTest('mount.overlay: mount -t overlay goes through it: source, relative paths, a link as target', (t) => {
  const { dir, mount, umount, overlay, mounted } = place(t);
  t.deepEqual(overlay(`${merged},nosuid,noatime,defaults,_netdev,nofail,x-any,comment=any`), silent);
  const entry = readMountinfo().findLast(({ target }) => target.toString() === join(dir, 'm'));
  t.is(entry?.source.toString(), 'src');
  t.is(mounted()?.mount, 'rw,nosuid,noatime');
  t.true(existsSync(join(dir, 'm/in-a')));
  umount();
  symlinkSync('m', join(dir, 'link'));
  t.deepEqual(mount('-t', 'overlay', 'src', '-o', merged, 'link'), silent);
  t.true(existsSync(join(dir, 'm/in-a')));
});

mountTest('mount.overlay: the words for any file system do what they do without a helper', (t) => {
  const { overlay, umount, mounted } = place(t);
  const look = () => {
    const found = mounted();
    const { options, others } = readShown(splitShown(Buffer.from(found?.super ?? '')));
    umount();
    return { mount: found?.mount, ro: options.readonlySuperblock, others };
  };
  for (const words of [
    'ro',
    'rw',
    'ro,rw,nosuid,nodev,noexec',
    'noexec,exec,nodiratime,noatime',
    'strictatime',
    'noatime,relatime',
    'noatime,strictatime',
    'nosymfollow',
    'user',
    'user,exec',
    'sync',
    'lazytime,silent',
    'ro,sync,nosuid',
  ]) {
    t.deepEqual(overlay(`${merged},${words}`), silent, words);
    const helped = look();
    t.deepEqual(overlay(`${merged},${words}`, '-i'), silent, words);
    t.deepEqual(helped, look(), words);
  }
});

mountTest('mount.overlay: flags of the superblock, of an overlay without an upper', (t) => {
  const { overlay, umount, mounted } = place(t);
  const view = 'lowerdir=a:b';
  const look = () => {
    const found = mounted();
    umount();
    return { mount: found?.mount, flags: found?.super.replace(/,lowerdir.*/, '') };
  };
  for (const words of ['lazytime', 'sync,nosuid', 'mand', 'iversion', 'ro,lazytime']) {
    t.deepEqual(overlay(`${view},${words},x-overlayfs.strict`), silent, words);
    const helped = look();
    t.deepEqual(overlay(`${view},${words}`, '-i'), silent, words);
    t.deepEqual(helped, look(), words);
  }
});

mountTest('mount.overlay: escaped layers, as the kernel and the fstab have them', (t) => {
  const { dir, mount, umount, overlay } = place(t);
  const make = (...names: string[]) => {
    for (const name of names) mkdirSync(Buffer.from(join(dir, name), 'latin1'));
  };
  make('x:y', 'p,q', 'back\\slash', 'u,u', 'w w');
  writeFileSync(join(dir, 'x:y/in-x'), '');
  writeFileSync(join(dir, 'p,q/in-p'), '');
  writeFileSync(join(dir, 'back\\slash/in-s'), '');
  t.deepEqual(overlay('lowerdir=x\\:y:p\\,q:back\\\\slash,upperdir=u\\,u,workdir=w w'), silent);
  for (const name of ['in-x', 'in-p', 'in-s']) t.true(existsSync(join(dir, 'm', name)), name);
  umount();
  make('byte\xff');
  writeFileSync(Buffer.from(join(dir, 'byte\xff/in-byte'), 'latin1'), '');
  // The fstab's own escape takes a level of backslashes away.
  const line = `ov ${dir}/m overlay lowerdir=${dir}/byte\xff:${dir}/x\\134:y,upperdir=${dir}/u,workdir=${dir}/w\\040w 0 0\n`;
  writeFileSync(join(dir, 'fstab'), line, 'latin1');
  t.deepEqual(mount('-T', 'fstab', join(dir, 'm')), silent);
  for (const name of ['in-byte', 'in-x']) t.true(existsSync(join(dir, 'm', name)), name);
});

mountTest(
  'mount.overlay: the mount table shows one lowerdir, with the paths as given, where 255 bytes hold it',
  (t) => {
    const { dir, overlay, mounted, umount } = place(t);
    symlinkSync('b', join(dir, 'link'));
    mkdirSync(join(dir, 'x:y'));
    const shows = (layers: readonly string[], ...shown: string[]) => {
      t.deepEqual(
        overlay(`lowerdir=${layers.map((layer) => `${dir}/${layer}`).join(':')},upperdir=u,workdir=w`),
        silent,
      );
      const options = mounted()?.super.split(',') ?? [];
      t.deepEqual(
        options.filter((option) => option.startsWith('lowerdir')),
        shown,
      );
      umount();
    };
    const octal = (text: string) => text.replaceAll('\\', '\\134');
    shows(['a', 'link', 'x\\:y'], `lowerdir=${dir}/a:${dir}/link:${octal(`${dir}/x\\:y`)}`);
    shows(['a/./', 'link'], `lowerdir=${dir}/a/./:${dir}/link`);
    const long = 'l'.repeat(200);
    mkdirSync(join(dir, long));
    shows(['a', long], `lowerdir+=${dir}/a`, `lowerdir+=${dir}/${long}`);
  },
);

mountTest('mount.overlay: the mount table shows lowerdir+ and datadir+ as given', { needs: 'lowerdirAppend' }, (t) => {
  const { dir, overlay, mounted, umount } = place(t);
  for (const name of ['x:y', 'with  spaces']) mkdirSync(join(dir, name));
  const shows = (...layers: string[]) => {
    t.deepEqual(overlay(`${layers.join()},redirect_dir=follow,metacopy=on`), silent);
    const shown = mounted()
      ?.super.split(',')
      .filter((option) => /^(?:lower|data)dir/.test(option));
    t.deepEqual(
      shown?.map((option) => option.replaceAll('\\040', ' ')),
      layers,
    );
    umount();
  };
  shows(`lowerdir+=${dir}/x:y`, `datadir+=${dir}/with  spaces`);
  shows(`lowerdir+=${dir}/a`, `lowerdir+=${dir}/b`);
  shows(`lowerdir=${dir}/a:${dir}/b`);
  for (const wrong of ['lowerdir=a,lowerdir+=x:y', 'lowerdir=a,datadir+=x:y', 'datadir+=a,lowerdir+=x:y']) {
    t.is(overlay(`${wrong},redirect_dir=follow,metacopy=on`).code, exitCodes.failed, wrong);
  }
  t.is(overlay('lowerdir+=x\\\\:y').code, exitCodes.failed, 'colons are not escaped');
});

mountTest('mount.overlay: more layers than mount(2) has room for', (t) => {
  const { dir, overlay } = place(t);
  const names = Array.from({ length: 40 }, (_, i) => `${'l'.repeat(100)}${i}`);
  for (const name of names) makeTree(dir, { [`${name}/in-${name.slice(100)}`]: '' });
  t.deepEqual(overlay(`lowerdir=${names.join(':')}`), silent);
  for (const i of [0, 39]) t.true(existsSync(join(dir, `m/in-${i}`)));
});

mountTest('mount.overlay: an fstab line: mount -T, mount -a, remount', (t) => {
  const { dir, mount, mounted } = place(t);
  const line = `ov ${dir}/m overlay lowerdir=${dir}/a:${dir}/b,upperdir=${dir}/u,workdir=${dir}/w,nodev 0 0\n`;
  writeFileSync(join(dir, 'fstab'), line);
  t.deepEqual(mount('-T', 'fstab', '-a'), silent);
  t.regex(mounted()?.mount ?? '', /^rw,nodev/);
  t.deepEqual(
    mount('-T', 'fstab', '-o', 'remount,ro', join(dir, 'm')),
    silent,
    'the layers are the same: nothing to say',
  );
  t.regex(mounted()?.mount ?? '', /^ro,nodev/);
});

mountTest('mount.overlay: remount: the flags change, options of overlayfs do not', (t) => {
  const { dir, mount, overlay, mounted, umount } = place(t);
  t.deepEqual(overlay(`${merged},volatile,nosuid`), silent);
  t.deepEqual(mount('-o', 'remount,ro', 'm'), silent);
  t.regex(mounted()?.mount ?? '', /^ro,nosuid/);
  t.regex(mounted()?.super ?? '', /^ro,/);
  t.deepEqual(mount('-o', 'remount,rw', 'm'), silent);
  t.regex(mounted()?.super ?? '', /^rw,/);

  const ignored = mount('-o', 'remount,ro,index=on,lowerdir=b', 'm');
  t.is(ignored.code, 0);
  t.regex(ignored.stderr, /^mount\.overlay: warning: a remount changes no option of overlayfs: .*'index'/);
  t.regex(ignored.stderr, /'lowerdir'/);
  t.regex(mounted()?.mount ?? '', /^ro/);
  const strict = mount('-o', 'remount,rw,index=on,x-overlayfs.strict', 'm');
  t.is(strict.code, 32);
  t.regex(mounted()?.mount ?? '', /^ro/, 'nothing has changed');

  t.deepEqual(mount('-o', 'remount,rw', 'm'), silent);
  const open = openSync(join(dir, 'm/new'), 'w');
  const busy = mount('-o', 'remount,ro', 'm');
  closeSync(open);
  t.is(busy.code, 32);
  t.regex(busy.stderr, /^mount\.overlay: EBUSY: .*open for writing.*\n {2}reason: mount-busy\n/);
  umount();

  t.deepEqual(overlay('lowerdir=a:b'), silent);
  const view = mount('-o', 'remount,rw', 'm');
  t.is(view.code, 32);
  t.regex(view.stderr, /^mount\.overlay: EROFS: .*no upperdir.*\n {2}reason: read-only\n/);
  umount();
  const nothing = run(dir, [join(dir, 'bin/mount.overlay'), 'src', 'm', '-o', 'remount,ro']);
  t.is(nothing.code, 32);
  t.regex(nothing.stderr, /reason: not-mounted/);
});

mountTest('mount.overlay: remount of an overlay that another mount covers', (t) => {
  const { dir } = place(t);
  const remount = (path: string) => run(dir, [join(dir, 'bin/mount.overlay'), 'src', path, '-o', 'remount,ro']);
  mkdirSync(join(dir, 'above/m'), { recursive: true });
  const layers = `lowerdir=${join(dir, 'a')}:${join(dir, 'b')}`;
  for (const [path, cover, expected] of [
    ['m', 'm', /another mount at the same path covers.*Unmount the mount that covers it/s],
    ['above/m', 'above', /the mount at '.*above' covers.*Unmount the one at '.*above' first/s],
  ] as const) {
    t.is(native.mount('x', join(dir, path), 'overlay', 0, layers), 0);
    t.is(native.mount('x', join(dir, cover), 'tmpfs', 0, ''), 0);
    const { code, stderr } = remount(join(dir, path));
    t.is(code, 32);
    t.regex(stderr, /reason: mount-covered/);
    t.regex(stderr, expected);
    t.is(native.umount(join(dir, cover), 0), 0);
    t.is(native.umount(join(dir, path), 0), 0);
    t.is(native.mount('x', join(dir, path), 'tmpfs', 0, ''), 0);
    t.is(native.mount('x', join(dir, path), 'tmpfs', 0, ''), 0);
    t.regex(remount(join(dir, path)).stderr, /reason: not-mounted/, 'no overlay is covered');
    for (let i = 0; i < 2; i++) native.umount(join(dir, path), 0);
  }
});

/** Options that the library refuses and the kernel takes. */
const passing: readonly (readonly [title: string, options: string, says: RegExp, before?: (place: Place) => void])[] = [
  ['index without upper', 'lowerdir=a:b,index=on', /index=on has no effect without upperdir/],
  ['volatile without upper', 'lowerdir=a:b,volatile', /volatile has no effect without upperdir/],
  ['a workdir alone', 'lowerdir=a:b,workdir=w', /workdir has no effect without an upperdir/],
  [
    'an upper that comes out read-only',
    merged,
    /reason: work-leftovers/,
    ({ dir }) => mkdirSync(join(dir, 'w/work/x/y/z'), { recursive: true }),
  ],
  [
    'a target that is a mount point',
    merged,
    /reason: target-mounted\n {2}hint: Unmount it first\.\n/,
    ({ dir }) => native.mount('below', join(dir, 'm'), 'tmpfs', 0, ''),
  ],
];

for (const [title, options, says, before] of passing) {
  mountTest(
    `mount.overlay: what the kernel lets pass is a warning, or with x-overlayfs.strict an error: ${title}`,
    (t) => {
      const found = place(t);
      const { dir, mount, overlay, umount, mounted } = found;
      before?.(found);
      const without = mounted();

      const strict = overlay(`${options},x-overlayfs.strict`);
      t.is(strict.code, 32);
      t.regex(strict.stderr, says);
      t.notRegex(strict.stderr, /warning|--|`/);
      t.deepEqual(mounted(), without);

      writeFileSync(join(dir, 'fstab'), `ov ${dir}/m overlay x-overlayfs.strict,${options} 0 0\n`);
      const line = mount('-T', 'fstab', join(dir, 'm'));
      t.is(line.code, 32);
      t.is(line.stderr, strict.stderr);

      const lax = overlay(options);
      t.is(lax.code, 0);
      t.regex(lax.stderr, says);
      t.regex(lax.stderr, /^mount\.overlay: warning(, mounted anyway: |: mounted read-only: )/);
      t.notRegex(lax.stderr, / would /);
      t.notDeepEqual(mounted(), without);
      umount();
    },
  );
}

/** The first lines of what was said, without the reasons and hints below. */
const said = (stderr: string): string[] => stderr.split('\n').filter((line) => line.startsWith('mount.overlay'));
const reasonsOf = (stderr: string): (string | undefined)[] =>
  Array.from(stderr.matchAll(/^ {2}reason: (.*)$/gm), ([, reason]) => reason);

const mountBelow = (at: string) => native.mount('below', at, 'tmpfs', 0, '');

/** The kernel refuses these; the library has further objections. */
const hidden: readonly {
  readonly title: string;
  readonly options: string;
  readonly before: (place: Place) => void;
  readonly reason: string;
  readonly warnings: readonly RegExp[] | undefined;
}[] = [
  {
    title: 'a missing lowerdir, behind a mounted target',
    options: 'lowerdir=none,upperdir=u,workdir=w',
    before: ({ dir }) => mountBelow(join(dir, 'm')),
    reason: 'lower-missing',
    warnings: [/is already a mount point/],
  },
  {
    title: 'a stale index, behind a mounted target',
    options: `lowerdir=b,upperdir=u,workdir=w,index=on`,
    before: ({ dir, overlay, umount }) => {
      overlay(`${merged},index=on`);
      umount();
      mountBelow(join(dir, 'm'));
    },
    reason: 'stale',
    warnings: [/is already a mount point/],
  },
  {
    title: 'an upper in use and an index, behind a mounted target',
    options: `${merged},index=on`,
    before: ({ dir, mount }) => {
      mkdirSync(join(dir, 'm2'));
      mount('-t', 'overlay', 'src', '-o', merged, 'm2');
      mountBelow(join(dir, 'm'));
    },
    reason: 'upper-in-use',
    warnings: [/is already a mount point/],
  },
  {
    title: 'a missing lowerdir, behind an upper in use',
    options: 'lowerdir=none,upperdir=u,workdir=w',
    before: ({ dir, mount }) => {
      mkdirSync(join(dir, 'm2'));
      mount('-t', 'overlay', 'src', '-o', merged, 'm2');
    },
    reason: 'lower-missing',
    // Which of the two is found first is for the library to choose.
    warnings: undefined,
  },
  {
    title: 'a missing lowerdir, behind options that are of no use',
    options: 'lowerdir=none:a,workdir=w,index=on,volatile',
    before: () => {},
    reason: 'lower-missing',
    warnings: [/workdir has no effect/, /index=on has no effect/, /volatile has no effect/],
  },
];

for (const { title, options, before, reason, warnings } of hidden) {
  mountTest(`mount.overlay: the kernel's reason is the error, objections are warnings beside it: ${title}`, (t) => {
    const found = place(t);
    before(found);
    const without = found.mounted();
    const { code, stderr } = found.overlay(options);
    t.is(code, 32);
    t.deepEqual(found.mounted(), without);
    t.is(reasonsOf(stderr).at(-1), reason, stderr);
    const lines = said(stderr);
    if (warnings !== undefined) t.is(lines.length, warnings.length + 1, stderr);
    warnings?.forEach((warning, i) => {
      t.regex(lines[i] ?? '', /^mount\.overlay: warning: /);
      t.regex(lines[i] ?? '', warning);
    });
    t.notRegex(lines.at(-1) ?? '', /warning/);
  });
}

mountTest('mount.overlay: where the kernel mounts, every objection is a warning, of what is now the case', (t) => {
  const { dir, mount, overlay, mounted, umount } = place(t);
  const useless = overlay('lowerdir=a:b,workdir=w,index=on,volatile,uuid=on');
  t.is(useless.code, 0);
  const lines = said(useless.stderr);
  t.is(lines.length, 4, useless.stderr);
  for (const name of ['workdir', 'index', 'volatile', 'uuid']) {
    t.true(
      lines.some((line) => new RegExp(`^mount.overlay: warning, mounted anyway: ${name}\\b`).test(line)),
      useless.stderr,
    );
  }
  t.notRegex(useless.stderr, / would /);
  umount();

  mkdirSync(join(dir, 'm2'));
  mkdirSync(join(dir, 'w2/work/x/y/z'), { recursive: true });
  t.deepEqual(mount('-t', 'overlay', 'src', '-o', merged, 'm2'), silent);
  mountBelow(join(dir, 'm'));
  const { code, stderr } = overlay('lowerdir=a,upperdir=u,workdir=w2');
  t.is(code, 0);
  t.deepEqual(reasonsOf(stderr), ['target-mounted', 'upper-in-use', 'work-leftovers']);
  t.regex(stderr, /^mount\.overlay: warning: mounted read-only: the workdir '\.\/w2' contains/m);
  t.notRegex(stderr, / would /);
  t.regex(mounted()?.super ?? '', /^ro,/);
  native.umount(join(dir, 'm2'), 0);
});

mountTest('mount.overlay: nofail: a layer that does not exist is no error', (t) => {
  const { dir, mount, overlay, mounted } = place(t);
  for (const missing of ['lowerdir=none,upperdir=u,workdir=w', 'lowerdir=a,upperdir=none,workdir=w']) {
    t.deepEqual(overlay(`nofail,${missing}`), silent);
    t.is(overlay(`nofail,${missing}`, '-i').code, 0, 'as without the helper');
    t.is(overlay(missing).code, 32);
    writeFileSync(join(dir, 'fstab'), `ov ${dir}/m overlay nofail,${missing.replaceAll('=', `=${dir}/`)} 0 0\n`);
    t.deepEqual(mount('-T', 'fstab', '-a'), silent);
  }
  t.is(mounted(), undefined);
  for (const wrong of [`${merged},bogus`, 'lowerdir=a,upperdir=u,workdir=u']) {
    const { code, stderr } = overlay(`nofail,${wrong}`);
    t.is(code, 32);
    t.not(stderr, '');
  }
  t.is(mount('-t', 'overlay', 'src', '-o', `nofail,${merged}`, 'no-target').code, 32);
});

mountTest('mount.overlay: a warning that cannot be written changes nothing', (t) => {
  const { dir, umount } = place(t);
  const command = 'mount -t overlay src -o lowerdir=a:b,index=on m';
  const inShell = (script: string) => run(dir, ['bash', '-c', script]);
  t.is(inShell(`${command} 2>/dev/full`).code, 0);
  umount();
  t.is(inShell(`${command} 2>&-`).code, 0);
  umount();
  // The pipe has lost its reader before mount(8) begins.
  t.is(inShell(`exec 3> >(:); wait $!; ${command} 2>&3`).code, 0);
  umount();
  t.is(inShell(`${command} -v >/dev/full`).code, 0);
  umount();
});

mountTest("mount.overlay: the caller's NODE_OPTIONS are for other programs", (t) => {
  const { dir, umount } = place(t);
  const command = ['mount', '-t', 'overlay', 'src', '-o', merged, 'm'];
  for (const NODE_OPTIONS of ['--require /none/at/all', '--no-such-option', '--max-old-space-size=1']) {
    t.deepEqual(run(dir, command, { NODE_OPTIONS }), silent);
    umount();
  }
});

mountTest('mount.overlay: from a working directory that has been removed', (t) => {
  const { dir, umount } = place(t);
  const layers = `lowerdir=${dir}/a,upperdir=${dir}/u,workdir=${dir}/w`;
  const from = (script: string) => run(dir, ['bash', '-c', `mkdir gone; cd gone; rmdir ../gone; exec ${script}`]);
  t.deepEqual(from(`mount -t overlay src -o ${layers} ${dir}/m`), silent);
  umount();
  t.deepEqual(from(`mount -t overlay src -o lowerdir=.:${dir}/a ${dir}/m`), {
    ...from(`mount -i -t overlay src -o lowerdir=.:${dir}/a ${dir}/m`),
  });
  const missing = from(`mount -t overlay src -o lowerdir=none:${dir}/a ${dir}/m`);
  t.is(missing.code, 32);
  t.regex(missing.stderr, /reason: (lower|path)-missing/);
});

mountTest('mount.overlay: a comment in the fstab makes nothing strict', (t) => {
  const { dir, mount, umount } = place(t);
  const line = (options: string) => `ov ${dir}/m overlay ${options}lowerdir=a:b,index=on 0 0\n`;
  writeFileSync(join(dir, 'fstab'), ` #${line('x-overlayfs.strict,')}${line('')}`);
  const { code, stderr } = mount('-T', 'fstab', join(dir, 'm'));
  t.is(code, 0);
  t.regex(stderr, /^mount\.overlay: warning, mounted anyway: /);
  umount();
});

mountTest('mount.overlay: what the kernel refuses is an error that says why, with exit code 32', (t) => {
  const { overlay, mounted } = place(t);
  for (const [options, says] of [
    [
      'lowerdir=none,upperdir=u,workdir=w',
      /^mount\.overlay: ENOENT: the lowerdir '\.\/none' does not exist\.\n {2}reason: lower-missing\n {2}hint: /,
    ],
    ['lowerdir=a,upperdir=none,workdir=w', /reason: upper-missing\n {2}hint: Create it\.\n/],
    ['lowerdir=a,upperdir=u,workdir=u', /reason: work-inside-upper\n/],
    ['lowerdir=a,upperdir=u', /upperdir needs workdir.*\n.*\n {2}hint: Add one\.\n/],
    ['upperdir=u,workdir=w', /^mount\.overlay: no lowerdir is given\n {2}hint: Name the lower layers/],
    ['lowerdir=a', /needs|at least 2/],
    [`${merged},metacopy=on,redirect_dir=off`, /metacopy=on and redirect_dir=off exclude each other/],
    [
      'upperdir=u,workdir=w,lowerdir=a,b',
      /^mount\.overlay: unknown option 'b'\n {2}hint: If this is a part of the path before it, write the comma in the path as '\\,'\.\n$/,
    ],
    ['upperdir=u,lowerdir=a,workdir=w,userxatr', /'userxatr'\n {2}hint: Did you mean userxattr\?\n$/],
    [`${merged},nfs_export=on,index=off`, /hint: Leave index out, which is then on, or/],
    [`${merged},indx=on`, /^mount\.overlay: unknown option 'indx'\n {2}hint: Did you mean index\?\n$/],
    [`${merged},index=maybe`, /^mount\.overlay: the option 'index' cannot be 'maybe'\n {2}hint: One of: on, off\.\n$/],
    [`${merged},volatile=on`, /^mount\.overlay: the option 'volatile=on' takes no value\n/],
    ['lowerdir=a:,upperdir=u,workdir=w', /^mount\.overlay: the option 'lowerdir=a:' is wrong/],
  ] as const) {
    const { code, stderr } = overlay(options);
    t.is(code, 32, options);
    t.regex(stderr, says);
    t.notRegex(stderr, /warning|--|`/, options);
    t.is(mounted(), undefined, options);
  }
});

mountTest('mount.overlay: the other exit codes', (t) => {
  const { dir, mounted } = place(t);
  const helper = (...args: string[]) => run(dir, ['bin/mount.overlay', ...args]);
  for (const args of [
    [],
    ['src'],
    ['src', 'm', 'more'],
    ['src', 'm', '-q'],
    ['src', 'm', '--fake'],
    ['src', 'm', '-o'],
    ['src', 'm', '-t', 'ext4'],
    ['src', ''],
  ]) {
    const { code, stderr } = helper(...args);
    t.is(code, exitCodes.usage, args.join(' '));
    t.regex(stderr, /^mount\.overlay: .*\n {2}hint: Usage: mount\.overlay SOURCE TARGET/);
  }
  const unable = run(dir, [...withoutCapabilities, 'bin/mount.overlay', 'src', 'm', '-o', 'lowerdir=a:b']);
  t.is(unable.code, exitCodes.usage);
  t.regex(
    unable.stderr,
    /reason: no-privilege\n {2}hint: Start it by 'overlayfs unshare', or as root with CAP_SYS_ADMIN\.\n$/,
  );
  // Too long to go without descriptors, of which there are more than Node itself needs to begin.
  const names = Array.from({ length: 400 }, (_, i) => `${'l'.repeat(240)}${i}`);
  for (const name of names) mkdirSync(join(dir, name));
  const limited = ['sh', '-c', 'ulimit -n 300; exec "$@"', 'sh', 'bin/mount.overlay', 'src', 'm', '-o'];
  const empty = run(dir, [...limited, `lowerdir=${names.map((name) => join(dir, name)).join(':')},x-overlayfs.strict`]);
  t.is(empty.code, exitCodes.system);
  t.regex(empty.stderr, /reason: out-of-descriptors/);
  t.is(mounted(), undefined);
});

mountTest(
  'mount.overlay: -f checks and mounts nothing, -v shows the system calls, -n is nothing, -s leaves out what is unknown',
  (t) => {
    const { overlay, mounted, umount } = place(t);
    const fake = overlay(merged, '-f', '-v');
    t.is(fake.code, 0);
    t.regex(fake.stdout, /^fs?mount\(|^mount\(/m);
    t.is(mounted(), undefined);
    t.is(overlay('lowerdir=a:b,index=on', '-f').code, 32);
    t.is(overlay(`${merged},bogus`, '-f').code, 32);
    const missing = overlay('lowerdir=a:none,upperdir=gone,workdir=w', '-f');
    t.is(missing.code, 32);
    t.regex(missing.stderr, /the lowerdir\[1\] '.*none' does not exist[\s\S]*the upperdir '.*gone' does not exist/);
    t.is(missing.stdout, '');
    t.deepEqual(overlay(merged, '-n'), silent);
    t.is(overlay(merged, '-f').code, 0, 'what is mounted already may be this very mount');
    umount();
    t.is(overlay(`${merged},bogus`).code, 32);
    const sloppy = overlay(`${merged},bogus,bogus2=1`, '-s');
    t.is(sloppy.code, 0);
    t.is(
      sloppy.stderr.match(/^mount\.overlay: warning: the unknown option 'bogus2?' is left out \(-s\)$/gm)?.length,
      2,
    );
    umount();
    const verbose = overlay('lowerdir=a:b,index=on', '-v');
    t.regex(verbose.stdout, /^mount\("src", "\.\/m", "overlay", 0, "lowerdir=a:b,index=on"\)/m);
    t.regex(overlay('remount,ro', '-v').stdout, /^mount\(NULL, "\.\/m", NULL, MS_RDONLY\|MS_REMOUNT.*, NULL\)/m);
  },
);

mountTest('mount.overlay: in another mount namespace', async (t) => {
  const { dir, mount, mounted } = place(t);
  const other = spawn('unshare', ['-m', 'sleep', '600']);
  t.teardown(() => other.kill());
  const table = () => readFileSync(`/proc/${other.pid}/mountinfo`, 'latin1');
  const own = readlinkSync('/proc/self/ns/mnt');
  await eventually(t, () => readlinkSync(`/proc/${other.pid}/ns/mnt`) !== own);
  const absolute = `lowerdir=${dir}/a,upperdir=${dir}/u,workdir=${dir}/w,nosuid`;
  const args = ['-N', String(other.pid), '-t', 'overlay', 'src', '-o'];
  t.deepEqual(mount(...args, absolute, join(dir, 'm')), silent);
  t.regex(table(), /\/m rw,nosuid,relatime .*- overlay src/);
  t.is(mounted(), undefined, 'nothing here');
  const here = ['-N', `/proc/${other.pid}/ns/mnt`, '-o'];
  const remount = run(dir, ['bin/mount.overlay', 'src', join(dir, 'm'), ...here, 'remount,ro']);
  t.deepEqual(remount, silent);
  t.regex(table(), /\/m ro,relatime .*- overlay src ro,/);

  const below = dir.slice(1);
  t.deepEqual(run(dir, ['bin/mount.overlay', 'rel', `${below}/b`, ...here, `lowerdir=${below}/a:${below}/u`]), silent);
  t.regex(table(), new RegExp(` ${dir}/b .*- overlay rel `), 'relative paths begin at the root of the namespace');

  mkdirSync(join(dir, 'w2/work/x/y/z'), { recursive: true });
  const leftovers = mount(
    ...args,
    `lowerdir=${dir}/a,upperdir=${dir}/u,workdir=${dir}/w2,x-overlayfs.strict`,
    join(dir, 'm'),
  );
  t.is(leftovers.code, 32);
  t.regex(leftovers.stderr, /reason: mounted-read-only/);
  t.is(table().match(/ - overlay src /g)?.length, 1);
  const conflict = mount(...args, 'lowerdir=/a:/b,index=on,x-overlayfs.strict', join(dir, 'm'));
  t.is(conflict.code, 32);
  t.regex(conflict.stderr, /index=on has no effect/);
  const missing = mount(...args, 'lowerdir=/none1:/none2', join(dir, 'm'));
  t.is(missing.code, 32);
  t.regex(missing.stderr, /^mount\.overlay: ENOENT: .*\n {2}reason: path-missing\n/);
  for (const [namespace, says] of [
    ['/proc/self/ns/none', /the mount namespace '\/proc\/self\/ns\/none' does not exist/],
    ['/proc/self/ns/uts', /refused to join the mount namespace/],
  ] as const) {
    const { code, stderr } = run(dir, ['bin/mount.overlay', 'src', 'm', '-N', namespace, '-o', absolute]);
    t.is(code, 32);
    t.regex(stderr, says);
  }
});

mountTest('mount.overlay: propagation', (t) => {
  const { dir } = place(t);
  for (const [word, tag] of [
    ['shared', /shared:/],
    ['rprivate', /^(?!.*shared:)/],
  ] as const) {
    const { code } = run(dir, ['bin/mount.overlay', 'src', 'm', '-o', `${merged},${word}`]);
    t.is(code, 0);
    t.regex(mountsBelow(join(dir, 'm')).at(-1)?.line.split(' - ')[0] ?? '', tag);
    native.umount(join(dir, 'm'), 0);
  }
});

test('docs/mount-helper.md has the exit codes', (t) => {
  const page = readFileSync(join(packageRoot, 'docs/mount-helper.md'), 'utf8');
  for (const code of Object.values(exitCodes)) t.regex(page, new RegExp(`^\\| ${code} \\|`, 'm'));
});
