import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { mountOverlaySync } from 'overlayfs';
import { layers, MS_BIND, makeTree, mountTest, native, scaled, scratch } from '../support/index.js';
import { json, overlayfs, program, run } from './run.js';

/** script(1) has a terminal. */
const onTerminal = (...args: string[]): string[] => {
  const command = ['sh', '-c', 'NO_COLOR=1 script -qec "$*" /dev/null', 'sh'];
  return run(args, { command }).stdout.trimEnd().split('\r\n');
};

mountTest('the same columns on a terminal and off it; blanks and commas are escaped', async (t) => {
  const dir = join(scratch(t), 'a b,c');
  const { lowerdir, upperdir, workdir, target } = layers(dir);
  const mounted = mountOverlaySync({ lowerdir, upperdir, workdir, target, source: 'my source', noexec: true });
  makeTree(dir, { 'lower2/': '', 'upper/in/': '' });
  const inside = mountOverlaySync({ lowerdir: [lowerdir, join(dir, 'lower2')], target: join(target, 'in') });
  const escaped = (path: string) => path.replaceAll(' ', '\\040');
  const listed = (path: string) => escaped(path).replaceAll(',', '\\054');
  const lines = [
    `${escaped(target)} overlay my\\040source rw,noexec,relatime upperdir=${listed(upperdir)},workdir=${listed(workdir)},lowerdir=${listed(lowerdir)}`,
    `${escaped(join(target, 'in'))} overlay overlay rw,relatime lowerdir=${listed(lowerdir)},lowerdir=${listed(join(dir, 'lower2'))}`,
  ];
  t.deepEqual(onTerminal('ls', `'${dir}'`), lines);
  t.deepEqual(run(['ls', dir]).stdout.trimEnd().split('\n'), lines);
  t.like((await json('ls', dir)).documents, [
    { target, type: 'overlay', overlay: { lowerdir: [lowerdir], upperdir } },
    { target: join(target, 'in') },
  ]);
  t.like(await overlayfs('ls', '-q', dir), { code: 0, stdout: '' });
  t.like(await overlayfs('ls', '-q', lowerdir), { code: 1, stdout: '' });
  for (const each of [inside, mounted]) each.unmountSync();
});

mountTest('watch: JSON lines, filters, --existing; it ends with its reader', async (t) => {
  const dir = scratch(t);
  const { lowerdir, upperdir, workdir, target } = layers(dir);
  makeTree(dir, { 'other/': '' });
  const mounted = mountOverlaySync({ lowerdir, upperdir, workdir, target });
  const child = spawn(process.execPath, [program, 'watch', '--json', '--existing', dir], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => JSON.parse((await lines.next()).value as string);
  t.like(await next(), { type: 'mounted', id: mounted.id, mount: { target, type: 'overlay' } });
  native.mount(join(dir, 'lower'), join(dir, 'other'), '', MS_BIND, '');
  mounted.unmountSync();
  t.like(await next(), { type: 'unmounted', id: mounted.id });
  const again = mountOverlaySync({ lowerdir, upperdir, workdir, target });
  t.like(await next(), { type: 'mounted', id: again.id, mount: { overlay: { upperdir } } });
  again.unmountSync();
  child.kill('SIGTERM');
  t.deepEqual(await once(child, 'exit'), [null, 'SIGTERM']);
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
    t.deepEqual({ code, stdout }, { code: 2, stdout: '' }, args.join(' '));
    t.regex(stderr, /does not exist\.\n {2}reason: path-missing\n/);
  }
  t.deepEqual(run(['ls', lowerdir]), { code: 1, stdout: '', stderr: '' });
  t.deepEqual(run(['ls', '--layer', lowerdir, lowerdir]), { code: 1, stdout: '', stderr: '' });
  t.is(run(['ls', '--namespace', '/proc/self/ns/mnt', missing]).code, 1, 'another namespace has paths of its own');
  const mounted = mountOverlaySync({ lowerdir, upperdir, workdir, target });
  rmSync(lowerdir, { recursive: true });
  t.regex(run(['ls', '--layer', lowerdir]).stdout, /merged overlay/);
  mounted.unmountSync();
});
