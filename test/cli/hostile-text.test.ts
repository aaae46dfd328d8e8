/** Text from outside is shown without what a terminal obeys, whichever door it comes through. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { mountOverlaySync } from 'overlayfs';
import { serve } from 'overlayfs/containerd';
import { baseline } from 'overlayfs/layers';
import { Snapshotter } from 'overlayfs/snapshots';
import { Log } from '#lib/containerd/log.js';
import { formatBytes } from '#lib/paths.js';
import { printable, printableJson } from '#lib/text.js';
import { TestClient } from '../containerd/client.js';
import { makeImage, makeProgramImage } from '../images/helper.js';
import { eventually, makeTree, mountTest, native, packageRoot, scratch } from '../support/index.js';
import { overlayfs, run } from './run.js';

/** Sets the title of a window, begins lines, clears the screen by one byte, turns the direction of text. */
const HOSTILE = '\x1b]0;owned\x07\r\n\x7f\u009b2J\u202e\u2066\u2028\u200f';
const obeyed = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/u;

function isHarmless(t: ExecutionContext, what: string, text: string): void {
  t.notRegex(text.replaceAll('\n', ''), obeyed, what);
  for (const line of text.split('\n')) t.false(line.includes('2J') && !line.includes('owned'), `${what}: its own line`);
}

/** Runs a command for people and with --json; nothing that it prints may reach the terminal. */
async function isTold(t: ExecutionContext, ...args: string[]): Promise<void> {
  for (const flags of [[], ['--json']]) {
    const words = args[0] === 'image' || args[0] === 'snapshot' ? 2 : 1;
    const { stdout, stderr } = await overlayfs(...args.slice(0, words), ...flags, ...args.slice(words));
    const shown = stdout + stderr;
    t.true(shown.includes('owned'), `${args[0]} ${flags} shows the text: ${shown.slice(0, 300)}`);
    isHarmless(t, `${args[0]} ${flags}`, shown);
    if (flags.length > 0 && stdout !== '')
      t.notThrows(() =>
        stdout
          .trimEnd()
          .split('\n')
          .map((line) => JSON.parse(line)),
      );
  }
}

test('the function itself', (t) => {
  t.is(
    printable(HOSTILE),
    String.raw`\033]0;owned\007\r\n\177\302\2332J\342\200\256\342\201\246\342\200\250\342\200\217`,
  );
  t.is(formatBytes('a"b\\\n'), String.raw`a\"b\\\n`);
  t.is(formatBytes(Buffer.from([0x61, 0xff, 0x1b, 0x5c])), String.raw`a\377\033\\`);
  t.is(printable('façade 日本 👩‍💻 \\'), 'façade 日本 👩‍💻 \\');
  const document = JSON.stringify({ [HOSTILE]: HOSTILE }, null, 2);
  t.notRegex(printableJson(document).replaceAll('\n', ''), obeyed);
  t.deepEqual(JSON.parse(printableJson(document)), { [HOSTILE]: HOSTILE });
});

mountTest('the mount, its layers, and a process that holds it', async (t) => {
  const dir = join(scratch(t), HOSTILE);
  makeTree(dir, {
    'lower/': '',
    [`lower/${HOSTILE}`]: 'old',
    'upper/': '',
    [`upper/${HOSTILE}`]: 'newer',
    'work/': '',
  });
  makeTree(dir, { [`upper/${HOSTILE}2`]: 'new', 'target/': '', 'inside/': '' });
  const at = (name: string) => join(dir, name);
  const [lowerdir, upperdir, workdir, target] = ['lower', 'upper', 'work', 'target'].map(at) as [
    string,
    string,
    string,
    string,
  ];
  const layers = ['--lowerdir', lowerdir, '--upperdir', upperdir, '--workdir', workdir];
  await isTold(t, 'explain', ...layers, target);
  await isTold(t, 'mount', '--dry-run', ...layers, target);
  const mount = mountOverlaySync({ lowerdir, upperdir, workdir, target, source: HOSTILE.replace('\0', '') });
  const file = openSync(join(target, HOSTILE), 'r');
  const held = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)', HOSTILE], {
    stdio: ['ignore', file, 'ignore'],
  });
  closeSync(file);
  t.teardown(() => held.kill('SIGKILL'));
  for (const name of ['holders', 'ls', 'changes', 'umount', 'check']) {
    if (name === 'check') writeFileSync(join(upperdir, `.wh.${HOSTILE}`), '');
    await isTold(t, name, ...(name === 'check' ? ['--lowerdir', lowerdir, upperdir] : [target]));
  }
  await isTold(t, 'lookup', target, HOSTILE);
  held.kill('SIGKILL');
  await once(held, 'exit');
  await eventually(t, () => {
    try {
      mount.unmountSync();
      return true;
    } catch {
      return false;
    }
  });
});

mountTest('a mount of a type with a subtype, as a user of FUSE may name one', async (t) => {
  const dir = scratch(t);
  native.mount(HOSTILE, dir, 'tmpfs', 0, '');
  await isTold(t, 'ls', '--all', dir);
});

test.serial('arguments, and paths that do not exist', async (t) => {
  const missing = join(scratch(t), HOSTILE);
  for (const name of ['umount', 'ls', 'holders', 'changes', 'lookup', 'check', 'rm', 'apply']) {
    await isTold(t, name, missing, ...(name === 'lookup' ? [HOSTILE] : name === 'apply' ? [missing] : []));
  }
  await isTold(t, 'mount', '--lowerdir', missing, missing);
  await isTold(t, 'run', '--lowerdir', missing, '--at', missing, '--', 'true');
  await isTold(t, 'image', 'run', '--root', scratch(t), missing);
  await isTold(t, 'snapshot', 'stat', '--root', missing, 'key');
  await isTold(t, 'serve', '--check', '--root', missing, '--address', `/run/${HOSTILE}/socket`);
  await isTold(t, `--${HOSTILE}`);
  await isTold(t, HOSTILE);
  await isTold(t, 'ls', `--${HOSTILE}`);
  await isTold(t, 'ls', '--type', HOSTILE, missing);
});

test.serial('keys and labels of snapshots', async (t) => {
  const root = join(scratch(t), 'root');
  const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
  await snapshotter.prepare(HOSTILE, '', { labels: { [HOSTILE]: HOSTILE } });
  await snapshotter.close();
  for (const verb of ['ls', 'tree']) await isTold(t, 'snapshot', verb, '--root', root);
  await isTold(t, 'snapshot', 'stat', '--root', root, HOSTILE);
  await isTold(t, 'snapshot', 'prepare', '--root', root, HOSTILE);
  await isTold(t, 'snapshot', 'rm', '--root', root, `no ${HOSTILE}`);
  await isTold(t, 'snapshot', 'ls', '--root', root, HOSTILE);
});

test.serial('names in an archive and in an image', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'tree/': '', [`tree/${HOSTILE}`]: '', 'target/': '' });
  const archive = join(dir, 'layer.tar');
  t.is((await overlayfs('pack', join(dir, 'tree'), archive)).code, 0);
  await isTold(t, 'apply', '--dry-run', archive);
  mkdirSync(join(dir, 'root'));
  await makeImage(dir, [{ file: '' }], { Cmd: [HOSTILE], User: HOSTILE, Env: [HOSTILE] });
  const index = join(dir, 'layout/index.json');
  writeFileSync(index, readFileSync(index, 'utf8').replace('"one"', JSON.stringify(HOSTILE)));
  await isTold(t, 'image', 'run', '--root', join(dir, 'root'), `${join(dir, 'layout')}:other`);
  await isTold(t, 'image', 'run', '--root', join(dir, 'root'), join(dir, 'layout'));
});

mountTest('what merges, archives and containers leave out, refuse or change', async (t) => {
  const dir = scratch(t);
  const at = (...names: string[]) => join(dir, ...names);
  makeTree(dir, { 'upper/': '', [`upper/${HOSTILE}`]: 'ours', 'below/': '', [`below/${HOSTILE}`]: 'old' });
  const since = at('since');
  writeFileSync(since, JSON.stringify(await baseline(at('below'))));
  await new Promise((resolve) => setTimeout(resolve, 20));
  writeFileSync(at('below', HOSTILE), 'theirs');
  await isTold(t, 'merge', '--since', since, at('upper'), at('below'));
  writeFileSync(since, HOSTILE);
  await isTold(t, 'merge', '--since', since, at('upper'), at('below'));
  await isTold(t, 'whiteout', at('below', HOSTILE));
  makeTree(dir, { [`upper/.wh.${HOSTILE}`]: '', 'new/': '' });
  await isTold(t, 'pack', at('upper'), at('no', HOSTILE));
  await isTold(t, 'pack', at('upper'), at('layer.tar'));
  await isTold(t, 'squash', at(HOSTILE), at('below'), at('new'));

  await makeProgramImage(dir, { Cmd: ['id'] });
  const image = ['image', 'run', '--root', at('root'), '--changes'];
  const container = ['--runtime', 'none', `${at('layout')}:one`, 'sh', '-c', '>"/$0"', HOSTILE];
  await isTold(t, ...image, ...container);
  writeFileSync(
    at('runtime'),
    `#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = --log ] && log=$2; shift; done
    printf '%s' "$HOSTILE" >"$log"; exit 1\n`,
    { mode: 0o755 },
  );
  process.env['HOSTILE'] = JSON.stringify({ level: 'error', msg: HOSTILE });
  t.teardown(() => delete process.env['HOSTILE']);
  await isTold(t, ...image, '--runtime', at('runtime'), `${at('layout')}:one`);
  await isTold(t, ...image, '--runtime', at(HOSTILE), `${at('layout')}:one`);
  for (const flag of ['--env', '--volume', '--user', '--cwd']) await isTold(t, ...image, flag, HOSTILE, ...container);
});

test('answers to containerd', async (t) => {
  const dir = scratch(t);
  const snapshotter = await Snapshotter.open(join(dir, 'root'), { fsync: 'none' });
  const server = await serve(snapshotter, { address: join(dir, 'socket'), logLevel: 'silent' });
  const client = new TestClient(server.address);
  t.teardown(async () => {
    client.close();
    await server.close();
    await snapshotter.close();
  });
  const hostile = HOSTILE.replaceAll('\r\n', '');
  for (const asked of [
    client.call('prepare', { key: hostile, parent: hostile }),
    client.call('stat', { key: hostile }),
    client.call('update', { info: { name: hostile }, updateMask: { paths: [hostile] } }),
    client.list([hostile]),
  ]) {
    const error = await t.throwsAsync<Error & { details?: string }>(asked, { message: /owned/ });
    isHarmless(t, 'an answer', error?.details ?? '');
  }
});

test('errors, warnings and the log of the server', async (t) => {
  const { mountOverlay } = await import('overlayfs');
  const error = await t.throwsAsync(mountOverlay({ lowerdir: `/${HOSTILE}` }), { message: /owned/ });
  isHarmless(t, 'an error', error?.message);
  const lines: string[] = [];
  new Log('debug', (line) => lines.push(line)).write('info', HOSTILE, { key: HOSTILE });
  isHarmless(t, 'the log', lines.join(''));
  t.like(JSON.parse(lines.join('')), { message: HOSTILE, key: HOSTILE });
  const { stderr } = run([packageRoot, '-o', `lowerdir=/${HOSTILE},${HOSTILE}`], {
    command: [process.execPath, join(packageRoot, 'dist/mount-helper.cjs'), HOSTILE, '--'],
  });
  isHarmless(t, 'the helper', stderr);
});
