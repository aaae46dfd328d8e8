/** `overlayfs mount` and `overlayfs umount`, for real. */
import { execFileSync, spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { listMountsSync, mountOverlaySync } from 'overlayfs';
import {
  layers,
  makeNamespace,
  makeTree,
  mountsBelow,
  mountTest,
  scratch,
  withoutCapabilities,
} from '../support/index.js';
import { json, overlayfs, program, run, runBytes } from './run.js';

const silent = { code: 0, stdout: '', stderr: '' };

mountTest('mount, umount: nothing said, nothing mounted', async (t) => {
  const dir = scratch(t);
  const { lowerdir, upperdir, workdir, target } = layers(dir);
  t.deepEqual(
    await overlayfs(
      'mount',
      '--lowerdir',
      lowerdir,
      '--upperdir',
      upperdir,
      '--workdir',
      workdir,
      '--no-index',
      '--nosuid',
      target,
    ),
    silent,
  );
  t.is(readFileSync(join(target, 'from-lower'), 'utf8'), 'lower');
  const [mounted] = mountsBelow(target);
  t.regex(mounted?.line ?? '', /nosuid.* - overlay overlay .*lowerdir.*/);
  t.deepEqual(await overlayfs('umount', target), silent);
  t.is(mountsBelow(target).length, 0);
});

mountTest('--create, relative paths, several lowers', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/one': 'a', 'b/one': 'b', 'b/two': 'b' });
  const args = ['mount', '--lowerdir', 'a', '--lowerdir', 'b', '--upperdir', 'u', '--create', 'new/m'];
  t.deepEqual(run(args, { cwd: dir }), silent);
  t.deepEqual(readdirSync(join(dir, 'new/m')), ['one', 'two']);
  t.is(readFileSync(join(dir, 'new/m/one'), 'utf8'), 'a');
  t.deepEqual(run(['umount', 'new/m'], { cwd: dir }), silent);
});

mountTest('--json: what was mounted and what was unmounted', async (t) => {
  const dir = scratch(t);
  const { lowerdir, upperdir, target } = layers(dir);
  const { code, document } = await json(
    'mount',
    '--lowerdir',
    lowerdir,
    '--upperdir',
    upperdir,
    '--create',
    '--xino=off',
    target,
  );
  t.is(code, 0);
  t.like(document, { target });
  t.is(typeof document['id'], 'number');
  t.deepEqual(document['options'], {
    lowerdir: [lowerdir],
    upperdir,
    create: true,
    xino: 'off',
    target,
    workdir: `${upperdir}.work`,
  });
  t.like(await json('umount', target), { code: 0, document: { unmounted: [target] } });
});

mountTest('errors: on stderr with reason and hint, in JSON with all fields, exit code 2', async (t) => {
  const dir = scratch(t);
  const { lowerdir, upperdir, target } = layers(dir);
  const args = ['mount', '--lowerdir', lowerdir, '--upperdir', upperdir, '--workdir', join(dir, 'none'), target];
  t.deepEqual(await overlayfs(...args), {
    code: 2,
    stdout: '',
    stderr: `overlayfs: ENOENT: the workdir '${dir}/none' does not exist.\n  reason: work-missing\n  hint: Create it, or pass --create.\n`,
  });
  const { code, document } = await json(...args);
  t.is(code, 2);
  t.deepEqual(Object.keys(document), ['errors']);
  const [error] = document['errors'] as Record<string, unknown>[];
  t.like(error, { code: 'ENOENT', reason: 'work-missing', hint: 'Create it, or pass --create.' });
  t.like(error, { path: join(dir, 'none'), message: `ENOENT: the workdir '${dir}/none' does not exist.` });
  t.is(typeof error?.['syscall'], 'string');
  t.is(mountsBelow(target).length, 0);
});

mountTest('without privilege', (t) => {
  const { lowerdir, upperdir, workdir, target } = layers(scratch(t));
  const args = ['mount', '--lowerdir', lowerdir, '--upperdir', upperdir, '--workdir', workdir, target];
  const { code, stderr } = run(args, { command: withoutCapabilities });
  t.is(code, 2);
  t.regex(stderr, /^overlayfs: EPERM: .*\n {2}reason: no-privilege\n {2}hint: Start it by 'overlayfs unshare', /);
});

mountTest('umount: each target is tried, and what failed is told', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/': '', 'b/': '', 'one/': '', 'two/': '', 'plain/': '' });
  const [one, two, plain] = ['one', 'two', 'plain'].map((name) => join(dir, name)) as [string, string, string];
  const view = ['--lowerdir', join(dir, 'a'), '--lowerdir', join(dir, 'b')];
  for (const target of [one, two]) t.is((await overlayfs('mount', ...view, target)).code, 0);
  const { code, document } = await json('umount', one, plain, two);
  t.is(code, 2);
  t.deepEqual(document['unmounted'], [one, two]);
  t.like((document['errors'] as object[])[0], { reason: 'not-mounted', path: plain, syscall: 'umount2' });
  const again = await overlayfs('umount', one, plain);
  t.is(again.code, 2);
  t.is(again.stderr.match(/^overlayfs: EINVAL: /gm)?.length, 2);
  t.notRegex(again.stderr, /Try/);
});

mountTest('umount: --detach, and a link, which is not followed', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/file': '', 'b/': '', 'm/': '' });
  symlinkSync('m', join(dir, 'link'));
  const view = ['mount', '--lowerdir', join(dir, 'a'), '--lowerdir', join(dir, 'b'), join(dir, 'm')];
  t.is((await overlayfs(...view)).code, 0);
  const busy = openSync(join(dir, 'm/file'), 'r');
  t.regex((await overlayfs('umount', join(dir, 'm'))).stderr, /reason: mount-busy\n.*pass --detach /);
  t.deepEqual(await overlayfs('umount', '--detach', join(dir, 'm')), silent);
  closeSync(busy);
  t.is((await overlayfs(...view)).code, 0);
  t.regex(
    (await overlayfs('umount', join(dir, 'link'))).stderr,
    /reason: target-symlink\n.*Name the mount point itself/,
  );
  t.deepEqual(await overlayfs('umount', join(dir, 'm')), silent);
});

mountTest('umount --timeout waits while the mount is busy, and not longer', async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  mountOverlaySync(options);
  const busy = spawn('sleep', ['60'], { cwd: options.target, stdio: 'ignore' });
  t.teardown(() => busy.kill('SIGKILL'));
  const start = performance.now();
  t.regex((await overlayfs('umount', '--timeout', '100ms', options.target)).stderr, /reason: mount-busy/);
  t.true(performance.now() - start >= 100);
  spawn('sh', ['-c', `sleep 0.3; kill ${busy.pid}`], { stdio: 'ignore' });
  t.deepEqual(await overlayfs('umount', '--timeout=1.5m', options.target), silent);
  t.is(mountsBelow(options.target).length, 0);
});

mountTest('umount --recursive, --detach', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/in/': '', 'b/': '', 'all/one/': '', 'all/two/': '', 'all/plain': '' });
  const [all, one, two] = ['all', 'all/one', 'all/two'].map((name) => join(dir, name)) as [string, string, string];
  const lowerdir = [join(dir, 'a'), join(dir, 'b')];
  const mountAll = () => {
    for (const target of [one, two, join(one, 'in')]) mountOverlaySync({ lowerdir, target });
  };
  mountAll();
  t.like(await json('umount', '--recursive', all), { code: 0, document: { unmounted: [all] } });
  t.is(mountsBelow(all).length, 0);
  t.deepEqual(await overlayfs('umount', '--recursive', all), silent, 'nothing there is no error');
  mountAll();
  const busy = openSync(join(two, 'in'), 'r');
  const failed = await json('umount', '--recursive', '--timeout', '20ms', all);
  t.is(failed.code, 2);
  t.like((failed.document['errors'] as object[])[0], { reason: 'mount-busy', path: two });
  t.deepEqual((await json('umount', '--recursive', '--detach', all)).document['unmounted'], [all]);
  t.is(mountsBelow(all).length, 0);
  closeSync(busy);
  t.deepEqual(readdirSync(all), ['one', 'plain', 'two']);
});

mountTest('umount --namespace', async (t) => {
  const { target, ...options } = layers(scratch(t));
  const namespace = makeNamespace();
  t.teardown(() => closeSync(namespace));
  mountOverlaySync({ ...options, target, namespace });
  const path = `/proc/${process.pid}/fd/${namespace}`;
  t.is(listMountsSync({ namespace, target }).length, 1);
  t.regex((await overlayfs('umount', target)).stderr, /reason: not-mounted/);
  t.deepEqual(await overlayfs('umount', '--namespace', path, target), silent);
  t.is(listMountsSync({ namespace, target }).length, 0);
});

mountTest('paths of any bytes, beside flags of Node', (t) => {
  const dir = scratch(t);
  const at = (name: string) => Buffer.concat([Buffer.from(`${dir}/`), Buffer.from(name, 'latin1')]);
  const [lower, upper, work, target] = ['l\xff:', 'u\xfe,', 'w\xfd\\', 'm\xfc "'].map(at) as [
    Buffer,
    Buffer,
    Buffer,
    Buffer,
  ];
  for (const path of [lower, upper, work, target]) mkdirSync(path);
  const upperFlag = Buffer.concat([Buffer.from('--upperdir='), upper]);
  const mounted = runBytes(['mount', '--lowerdir', lower, upperFlag, '--workdir', work, '--json', '--', target]);
  t.is(mounted.code, 0, mounted.stdout);
  t.deepEqual(JSON.parse(mounted.stdout).target, { base64: target.toString('base64') });
  t.is(readFileSync('/proc/thread-self/mountinfo', 'latin1').match(/m\xfc/g)?.length, 1);
  t.deepEqual(runBytes(['umount', target]), silent);
  t.deepEqual(runBytes(['rm', work]), silent);
  t.deepEqual(readdirSync(dir, { encoding: 'buffer' }).length, 3);
  const missing = runBytes(['umount', at('none\xff')]);
  t.is(missing.code, 2);
  t.true(missing.stderr.includes("none\\377' does not exist"));
});

mountTest('in a user namespace', (t) => {
  const dir = scratch(t);
  const { lowerdir, upperdir, workdir, target } = layers(dir);
  const script = `"$@" && grep -o userxattr /proc/self/mountinfo`;
  const command = ['unshare', '-Urm', 'sh', '-c', script, 'sh'];
  const args = ['mount', '--lowerdir', lowerdir, '--upperdir', upperdir, '--workdir', workdir, target];
  t.deepEqual(run(args, { command }), { ...silent, stdout: 'userxattr\n' });
});

mountTest('output that cannot be written is an error, output that nobody reads is none', (t) => {
  t.notThrows(() => execFileSync('sh', ['-c', `"$0" "$1" features | true`, process.execPath, program]));
  const full = run(['features'], { command: ['sh', '-c', '"$@" > /dev/full', 'sh'] });
  t.is(full.code, 2);
  t.regex(full.stderr, /^overlayfs: ENOSPC/);
});
