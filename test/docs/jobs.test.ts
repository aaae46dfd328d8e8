/** The programs of examples/jobs: the common jobs, in a few lines each. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import test from 'ava';
import { mountOverlay } from 'overlayfs';
import { createImage, createLayout } from 'overlayfs/images';
import { pack } from 'overlayfs/layers';
import { makeTree, mountTest, packageRoot, scratch } from '../support/index.js';
import { asNobody } from '../support/plain-user.js';

const jobs = ['copy', 'attempts', 'sandbox', 'container', 'build-cache', 'table'];
const programOf = (job: string): string => join(packageRoot, `dist-test/examples/jobs/${job}.js`);

/** Runs a job by its name as a plain user, and returns what it prints. */
function perform(dir: string, job: string, ...args: string[]): string {
  execFileSync('chown', ['-R', '65534:65534', dir]);
  const [command = '', ...rest] = [...asNobody, process.execPath, programOf(job), ...args];
  const { status, stdout, stderr } = spawnSync(command, rest, { cwd: dir, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${job} ended with ${status}: ${stderr}`);
  return stdout;
}

test('the jobs take at most 45 lines together, without blank ones', (t) => {
  const files = readdirSync(join(packageRoot, 'examples/jobs')).sort();
  t.deepEqual(files, jobs.map((job) => `${job}.ts`).sort());
  const lines = files.flatMap((file) =>
    readFileSync(join(packageRoot, 'examples/jobs', file), 'utf8')
      .trimEnd()
      .split('\n')
      .filter(Boolean),
  );
  t.true(lines.length <= 45, `${lines.length}`);
});

mountTest('a copy for a test, and attempts of which one is kept', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'fixture/settings': 'original' });
  perform(dir, 'copy', 'fixture');
  t.is(readFileSync(join(dir, 'fixture/settings'), 'utf8'), 'original');
  perform(dir, 'attempts', 'fixture', 'touch one; exit 1', 'touch two', 'touch three');
  t.deepEqual(readdirSync(join(dir, 'fixture')).sort(), ['settings', 'two']);
  perform(dir, 'attempts', 'fixture', 'touch four; exit 1');
  t.deepEqual(readdirSync(join(dir, 'fixture')).sort(), ['settings', 'two']);
});

mountTest('a sandbox without network, with a limit', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'project/gone': '' });
  const printed = perform(
    dir,
    'sandbox',
    'project',
    'sh',
    '-c',
    'rm gone; touch new; head -c 100M /dev/zero > big; tail -n +3 /proc/net/dev | wc -l',
  );
  t.regex(printed, /^1\n/, 'the loopback device alone');
  t.regex(printed, /\nD gone\nA new\n$/);
  t.deepEqual(readdirSync(join(dir, 'project')), ['gone']);
});

mountTest('a build in steps, each of which is made once', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  mkdirSync(join(dir, 'root'));
  writeFileSync(join(dir, 'log'), '');
  const steps = [`echo one > one; echo 1 >> ${dir}/log`, `cat one; echo 2 >> ${dir}/log`];
  const name = perform(dir, 'build-cache', 'root', ...steps);
  t.regex(name, /^[0-9a-f]{32}\n$/);
  t.is(perform(dir, 'build-cache', 'root', ...steps), name);
  t.not(perform(dir, 'build-cache', 'root', ...steps, `echo 3 >> ${dir}/log`), name);
  t.is(readFileSync(join(dir, 'log'), 'utf8'), '1\n2\n3\n');
});

mountTest('a container of an image', async (t) => {
  const dir = scratch(t, 'disk');
  const busybox = execFileSync('sh', ['-c', 'command -v busybox || true'], { encoding: 'utf8' }).trim();
  makeTree(dir, { 'root/bin/': '' });
  const program = busybox === '' ? '/bin/sh' : busybox;
  execFileSync('cp', ['-L', program, join(dir, 'root/bin/sh')]);
  const libraries = spawnSync('ldd', [program], { encoding: 'utf8' }).stdout.match(/\/\S+/g) ?? [];
  for (const library of libraries) execFileSync('cp', ['-L', '--parents', library, join(dir, 'root')]);
  await createImage(await createLayout(join(dir, 'layout')), [pack(join(dir, 'root'), { layout: 'plain' })], {
    tag: 'one',
  });
  const args = [programOf('container'), `oci:${dir}/layout:one`, '/bin/sh', '-c', 'echo inside > /new; exit 7'];
  const { status, stderr } = spawnSync(process.execPath, args, {
    encoding: 'utf8',
    env: { ...process.env, XDG_DATA_HOME: join(dir, 'data') },
  });
  t.is(status, 7, stderr);
});

mountTest('a count of overlays that is kept up to date', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/': '', 'a/': '', 'b/': '' });
  const lowerdir = join(dir, 'lower');
  const first = await mountOverlay({ lowerdir, target: join(dir, 'a') });
  const child = spawn(process.execPath, [programOf('table')], { stdio: ['ignore', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => Number((await lines.next()).value);
  const before = await next();
  const second = await mountOverlay({ lowerdir, target: join(dir, 'b') });
  t.is(await next(), before + 1);
  await second.unmount();
  t.is(await next(), before);
  await first.unmount();
  t.is(await next(), before - 1);
  const ended = once(child, 'close');
  child.kill();
  await ended;
});
