import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync } from 'overlayfs';
import { layers, MS_BIND, makeTree, mountTest, native, scaled, scratch } from '../support/index.js';
import { run } from './run.js';

/** script(1) has a terminal. */
const onTerminal = (...args: string[]): string[] => {
  const command = ['sh', '-c', 'NO_COLOR=1 script -qec "$*" /dev/null', 'sh'];
  return run(args, { command }).stdout.trimEnd().split('\r\n');
};

mountTest('on a terminal: a tree of mounts and layers', (t) => {
  const dir = scratch(t);
  const { lowerdir, upperdir, workdir, target } = layers(dir);
  const mounted = mountOverlaySync({ lowerdir, upperdir, workdir, target });
  makeTree(dir, { 'lower2/': '', 'upper/in/': '', 'upper/beside/': '' });
  const inside = mountOverlaySync({ lowerdir: [lowerdir, join(dir, 'lower2')], target: join(target, 'in') });
  const beside = mountOverlaySync({ lowerdir: [lowerdir, join(dir, 'lower2')], target: join(target, 'beside') });
  t.deepEqual(onTerminal('ls', dir), [
    `${target}  overlay overlay rw,relatime`,
    `├─ upper  ${upperdir}`,
    `├─ work   ${workdir}`,
    `├─ lower  ${lowerdir}`,
    `├─ ${join(target, 'in')}  overlay overlay rw,relatime`,
    `│  ├─ lower  ${lowerdir}`,
    `│  └─ lower  ${join(dir, 'lower2')}`,
    `└─ ${join(target, 'beside')}  overlay overlay rw,relatime`,
    `   ├─ lower  ${lowerdir}`,
    `   └─ lower  ${join(dir, 'lower2')}`,
  ]);
  for (const each of [beside, inside, mounted]) each.unmountSync();
});

mountTest('more mounts over each other than calls can be inside each other', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'from/': '', 'over/': '' });
  const count = scaled(5000);
  for (let i = 0; i < count; i++) native.mount(join(dir, 'from'), join(dir, 'over'), '', MS_BIND, '');
  const lines = onTerminal('ls', '--all', join(dir, 'over'));
  t.is(lines.length, count);
  t.true(lines.every((line) => line.includes(join(dir, 'over'))));
  t.true(lines.every((line) => line.length < 1000));
});

mountTest('a path that is not there is an error, unless a mount is shown for it', (t) => {
  const dir = scratch(t);
  const { lowerdir, upperdir, workdir, target } = layers(dir);
  const missing = join(dir, 'nosuch');
  for (const args of [[missing], ['--layer', missing], ['--layer', missing, dir], [join(lowerdir, 'from-lower/x')]]) {
    const { code, stdout, stderr } = run(['ls', ...args]);
    t.deepEqual({ code, stdout }, { code: 1, stdout: '' }, args.join(' '));
    t.regex(stderr, /does not exist\.\n {2}reason: path-missing\n/);
  }
  t.deepEqual(run(['ls', lowerdir]), { code: 0, stdout: '', stderr: '' });
  t.deepEqual(run(['ls', '--layer', lowerdir, lowerdir]), { code: 0, stdout: '', stderr: '' });
  t.is(run(['ls', '--namespace', '/proc/self/ns/mnt', missing]).code, 0, 'another namespace has paths of its own');
  const mounted = mountOverlaySync({ lowerdir, upperdir, workdir, target });
  rmSync(lowerdir, { recursive: true });
  t.regex(run(['ls', '--layer', lowerdir]).stdout, /merged overlay/);
  mounted.unmountSync();
});
