import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import test from 'ava';
import { explain, mountOverlay, mountOverlaySync, OverlayMount, unmountSync } from 'overlayfs';
import { hasFeature, mountsBelow, mountTest, native, scratch } from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';
import { ways } from '../support/ways.js';

/** Directory names that have broken something somewhere. */
const names: readonly (string | Buffer)[] = [
  'plain',
  'a:b',
  'a::b',
  ':ab',
  'ab:',
  'a,b',
  ',ab',
  'ab,',
  'a,upperdir=x',
  'a\\b',
  'ab\\',
  '\\ab',
  'a\\\\b',
  'a\\:b',
  'a\\,b',
  'a b',
  ' ab',
  'ab ',
  'a\tb',
  'a\nb',
  'a\rb',
  'a"b',
  "a'b",
  'a`b',
  'a#b',
  'a=b',
  'a%b',
  'a$b',
  'a*b?[c]',
  'a!b',
  'a;b|c&d',
  '-a',
  '..a',
  'a\x01b\x7f',
  'äöü',
  '層🗂',
  'a\\040b',
  'x'.repeat(255),
  Buffer.from([0x61, 0xff, 0xfe, 0x62]),
  Buffer.from([0x5c, 0xff, 0x3a, 0x80, 0x2c]),
];

test('there are 40 names', (t) => t.is(new Set(names.map((name) => Buffer.from(name).toString('hex'))).size, 40));

const bytes = (...parts: (string | Buffer)[]): Buffer =>
  Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part)));

for (const [way, { mountSync, mount, needs }] of Object.entries(ways)) {
  mountTest(`40 awkward names mount the right directory ${way}`, { needs }, async (t) => {
    const dir = scratch(t);
    for (const [i, name] of names.entries()) {
      const base = bytes(dir, `/${i}/`);
      const [lower, upper, work, target] = ['l', 'u', 'w', 'm'].map((kind) => bytes(base, kind, '/', name));
      for (const path of [lower, upper, work, target]) mkdirSync(path as Buffer, { recursive: true });
      writeFileSync(bytes(lower as Buffer, '/from-lower'), String(i));
      const options = { lowerdir: lower, upperdir: upper, workdir: work, target } as Record<string, Buffer>;
      const shown = JSON.stringify(name.toString());
      // Every other one as a string, where the name is one.
      const asText = (path: Buffer | undefined) => (i % 2 && typeof name === 'string' ? String(path) : path);
      const given = {
        lowerdir: asText(options['lowerdir']) as string,
        upperdir: asText(options['upperdir']) as string,
        workdir: asText(options['workdir']) as string,
        target: asText(options['target']) as string,
      };
      const mounted = i % 3 ? mountSync(given) : await mount(given);
      t.is(readFileSync(bytes(target as Buffer, '/from-lower'), 'latin1'), String(i), shown);
      writeFileSync(bytes(target as Buffer, '/new'), '');
      t.deepEqual(readdirSync(upper as Buffer), ['new'], shown);
      t.deepEqual(readdirSync(work as Buffer), ['work'], shown);
      if (i % 2) mounted.unmountSync();
      else unmountSync(given.target);
      t.deepEqual(readdirSync(target as Buffer), [], shown);
    }
  });

  mountTest(`paths of 4,000 bytes mount the right directory ${way}`, { needs }, async (t) => {
    const dir = scratch(t);
    const long = (kind: string, length: number) => {
      const components = `${dir}/${kind}`.length;
      const rest = length - components;
      const full = Math.floor(rest / 201);
      return `${dir}/${kind}${`/${'y'.repeat(200)}`.repeat(full)}/${'z'.repeat(rest - 201 * full - 1)}`;
    };
    const makeDeep = (path: string) => mkdirSync(path, { recursive: true });
    // Only one of them fits a page of mount(2) options.
    const isMount2 = way === 'by mount(2)' || (way === 'as it comes' && !hasFeature('fsContext'));
    for (const kind of ['lowerdir', 'upperdir', 'workdir', 'target'] as const) {
      const length = isMount2 && kind !== 'target' ? 3800 : 4000;
      const paths = { lowerdir: '', upperdir: '', workdir: '', target: '' };
      for (const other of Object.keys(paths) as (keyof typeof paths)[]) {
        paths[other] = other === kind || !isMount2 ? long(`${kind}-${other}`, length) : `${dir}/${kind}-${other}`;
        makeDeep(paths[other]);
      }
      t.is(paths[kind].length, length);
      // Reached by way of its descriptor: a name in a directory of 4,000 bytes may pass the limit of a path.
      writeFileSync(`${paths.lowerdir}/f`, kind);
      const mounted = await mountSyncOrAsync(kind, mountSync, mount)(paths);
      t.is(readFileSync(`${paths.target}/f`, 'latin1'), kind);
      writeFileSync(`${paths.target}/n`, '');
      t.deepEqual(readdirSync(paths.upperdir), ['n']);
      mounted.unmountSync();
    }
  });
}

function mountSyncOrAsync(
  kind: string,
  mountSync: (typeof ways)[string]['mountSync'],
  mount: (typeof ways)[string]['mount'],
): (typeof ways)[string]['mount'] {
  return kind === 'lowerdir' ? mount : async (options) => mountSync(options);
}

for (const [way, { mountSync, needs }] of Object.entries(ways)) {
  mountTest(`500 layers of 60-byte names ${way}`, { needs }, (t) => {
    const dir = scratch(t);
    const lowerdir = Array.from({ length: 500 }, (_, i) => `${dir}/${String(i).padStart(3, '0').padEnd(60, 'n')}`);
    for (const [i, path] of lowerdir.entries()) {
      mkdirSync(path);
      writeFileSync(`${path}/own-${i}`, '');
      writeFileSync(`${path}/top`, String(i));
    }
    for (const kind of ['u', 'w', 'm']) mkdirSync(`${dir}/${kind}`);
    const options = { lowerdir, upperdir: `${dir}/u`, workdir: `${dir}/w`, target: `${dir}/m` };
    const mounted = mountSync(options);
    t.is(readFileSync(`${dir}/m/top`, 'latin1'), '0');
    t.is(readdirSync(`${dir}/m`).length, 501);
    mounted.unmountSync();
  });
}

const automount = { needs: ['pathDescriptors', 'debugfs with tracefs in it'] } as const;

mountTest('a layer that the kernel mounts when it is come upon', automount, async (t) => {
  for (const mount of [mountOverlay, mountOverlaySync]) {
    const dir = scratch(t);
    for (const name of ['debug', 'l', 'm']) mkdirSync(`${dir}/${name}`);
    t.is(native.mount('debug', `${dir}/debug`, 'debugfs', 0, ''), 0);
    t.is(mountsBelow(`${dir}/debug`).length, 1);
    const lowerdir = [`${dir}/l`, `${dir}/debug/tracing`];
    const make = async () => mount({ lowerdir, target: `${dir}/m` });
    const mounted = await make().catch((error: unknown) => error);
    t.is(mountsBelow(`${dir}/debug`).length, 2, 'the kernel has mounted it');
    if (native.mount('plain', `${dir}/m`, 'overlay', 0, `lowerdir=${lowerdir.join(':')}`) === 0) {
      t.is(native.umount(`${dir}/m`, 0), 0);
      if (!(mounted instanceof OverlayMount)) throw mounted;
      t.true(existsSync(`${dir}/m/events`));
      await mounted.unmount();
    } else {
      t.like(mounted, { reason: 'layer-unsupported', path: lowerdir[1] as string });
      t.regex(String(mounted), /is on tracefs, which overlayfs does not support/);
    }
    t.is(native.umount(`${dir}/debug/tracing`, 0), 0);
    t.is(native.umount(`${dir}/debug`, 0), 0);
  }
});

const inMemory =
  'proc sysfs cgroup2 securityfs debugfs tracefs bpf binfmt_misc devpts mqueue devtmpfs ramfs pstore fusectl';

mountTest('a layer on a file system of the kernel is mounted or refused as by mount(2)', async (t) => {
  const outcomes = [];
  for (const type of inMemory.split(' ')) {
    const dir = scratch(t);
    for (const name of ['l', 'fs', 'm']) mkdirSync(`${dir}/${name}`);
    if (native.mount('fs', `${dir}/fs`, type, 0, '') !== 0) continue;
    const options = { lowerdir: [`${dir}/l`, `${dir}/fs`], target: `${dir}/m` };
    const errno = native.mount('plain', options.target, 'overlay', 0, `lowerdir=${options.lowerdir.join(':')}`);
    outcomes.push(`${type} ${errno}`);
    if (errno === 0) t.is(native.umount(options.target, 0), 0);
    const { findings } = await explain(options);
    if (errno === 0) {
      t.deepEqual(findings, [], type);
      mountOverlaySync(options).unmountSync();
    } else {
      const expected = { reason: 'layer-unsupported', path: options.lowerdir[1] as string } as const;
      t.like(findings, [expected], type);
      t.regex(String(findings[0]?.message), new RegExp(`is on ${type}, which overlayfs does not support`));
      const error = await t.throwsAsync(mountOverlay(options), { code: 'EINVAL' }, type);
      t.like(error, expected, type);
    }
  }
  t.log(outcomes.join(', '));
  t.true(outcomes.length >= 5);
});

mountTest('a plain user hears of a file system of the kernel too', { needs: ['rootless', 'binfmt_misc'] }, (t) => {
  const dir = scratch(t);
  for (const name of ['l', 'fs', 'm']) mkdirSync(`${dir}/${name}`);
  t.is(native.mount('fs', `${dir}/fs`, 'binfmt_misc', 0, ''), 0);
  const isTaken = native.mount('plain', `${dir}/m`, 'overlay', 0, `lowerdir=${dir}/l:${dir}/fs`) === 0;
  giveTo(dir);
  const code = `
    const make = overlayfs.mountOverlay({ lowerdir: [join(args[0], 'l'), join(args[0], 'fs')], rootless: true });
    return make.then((view) => view.unmount().then(() => 'mounted'), ({ reason }) => reason);`;
  t.is(evaluateAsNobody(code, dir), isTaken ? 'mounted' : 'layer-unsupported');
});
