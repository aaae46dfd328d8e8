/** `overlayfs apply` and `overlayfs pack` */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, lstatSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import test from 'ava';
import { mountOverlaySync } from 'overlayfs';
import { formatProgress } from '#lib/cli/long-work.js';
import { kernelTest, makeTree, mountTest, scratch } from '../support/index.js';
import { overlayfs, program } from './run.js';

async function cli(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await overlayfs(...args);
  if (code !== 0) throw new Error(stderr);
  return stdout;
}

kernelTest('an upper goes through an archive: files, standard input and output, compressed or not', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/d/file': 'data' });
  execFileSync('mknod', [join(dir, 'upper/gone'), 'c', '0', '0']);
  for (const name of ['a.tar', 'a.tar.gz', 'a.tgz']) {
    const packed = JSON.parse(await cli('pack', '--json', join(dir, 'upper'), join(dir, name)));
    t.like(packed, { entries: 4, whiteouts: 1, compression: name === 'a.tar' ? 'none' : 'gzip' });
    const applied = JSON.parse(
      await cli('apply', '--json', '--expected-diff-id', packed.diffId, join(dir, name), join(dir, `${name}.out`)),
    );
    t.like(applied, { entries: 4, whiteouts: 1, digest: packed.digest });
    t.is(readFileSync(join(dir, `${name}.out/d/file`), 'utf8'), 'data');
  }
  const script = '"$0" "$1" pack "$2" | "$0" "$1" apply - "$3"';
  execFileSync('sh', ['-c', script, process.execPath, program, join(dir, 'upper'), join(dir, 'piped')]);
  t.deepEqual(readdirSync(join(dir, 'piped')), ['d', 'gone']);
  t.deepEqual(
    readdirSync(dir).filter((name) => name.includes('partial')),
    [],
  );
});

kernelTest('pack writes to a device, and through a symbolic link: neither is replaced', async (t) => {
  const dir = scratch(t);
  const [device, link] = [join(dir, 'null'), join(dir, 'link')];
  makeTree(dir, { 'upper/d/file': 'data', 'a.tar': 'old' });
  execFileSync('mknod', [device, 'c', '1', '3']);
  symlinkSync('a.tar', link);
  for (const place of [device, link]) await cli('pack', join(dir, 'upper'), place);
  t.true(lstatSync(device).isCharacterDevice());
  t.true(lstatSync(link).isSymbolicLink());
  t.regex(await cli('apply', '--dry-run', join(dir, 'a.tar')), /d\/file\n$/);
  await t.throwsAsync(cli('pack', join(dir, 'upper'), dir), { message: /could not be written/ });
});

mountTest('pack says that the place of the archive is read-only', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/file': '', 'b/': '', 'm/': '' });
  const mount = mountOverlaySync({ lowerdir: [join(dir, 'a'), join(dir, 'b')], target: join(dir, 'm') });
  t.teardown(() => mount.unmountSync());
  const error = await t.throwsAsync(cli('pack', join(dir, 'a'), join(dir, 'm/a.tar')));
  t.regex(error.message, /EROFS: the file system of the archive '.*m\/a.tar' is read-only/);
});

kernelTest('pack refuses a name of an archive that it does not write', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/file': '' });
  for (const name of ['a.tar.xz', 'a.txz', 'a.tar.bz2', 'a.tar.lz4', 'a.zip', 'a.7z', 'a.tar.Z', 'a.cpio']) {
    const { code, stderr } = await overlayfs('pack', join(dir, 'upper'), join(dir, name));
    t.is(code, 2, name);
    t.regex(
      stderr,
      /this command writes no \.\w+\n {2}hint: Name a file that ends in \.tar, \.tar\.gz or \.tar\.zst/,
      name,
    );
  }
  t.deepEqual(readdirSync(dir), ['upper']);
  await cli('pack', '--compression', 'gzip', join(dir, 'upper'), join(dir, 'a.zip'));
  t.is(JSON.parse(await cli('pack', '--json', join(dir, 'upper'), join(dir, 'a.TGZ'))).compression, 'gzip');
});

kernelTest('pack refuses an archive inside what it packs, also by another path', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/d/file': 'data' });
  symlinkSync('upper/d', join(dir, 'link'));
  for (const place of ['upper/a.tar', 'link/a.tar']) {
    const { code, stderr } = await overlayfs('pack', join(dir, 'upper'), join(dir, place));
    t.is(code, 2, place);
    t.regex(stderr, /a\.tar' would be inside the directory that is packed/);
  }
  t.deepEqual(readdirSync(join(dir, 'upper/d')), ['file']);
  execFileSync('mknod', [join(dir, 'upper/null'), 'c', '1', '3']);
  await cli('pack', join(dir, 'upper'), join(dir, 'upper/null'));
});

kernelTest('--dry-run lists and writes nothing', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/d/file': 'data' });
  await cli('pack', join(dir, 'upper'), join(dir, 'a.tar'));
  t.regex(
    await cli('apply', '--dry-run', join(dir, 'a.tar')),
    /^d 0755 0:0 0 \.\/\nd 0755 0:0 0 d\/\n- 0644 0:0 4 d\/file\n$/,
  );
  t.is(await cli('pack', '--dry-run', join(dir, 'upper')), await cli('apply', '--dry-run', join(dir, 'a.tar')));
  t.is((await cli('apply', '--dry-run', '--json', join(dir, 'a.tar'))).trimEnd().split('\n').length, 3);
  t.deepEqual(readdirSync(dir).sort(), ['a.tar', 'upper']);
});

/** Runs a script in which "$@" is the program. */
function sh(script: string): {
  readonly status: number | null;
  readonly signal: string | null;
  readonly stderr: string;
} {
  return spawnSync('bash', ['-c', script, 'bash', process.execPath, program], { encoding: 'utf8' });
}

kernelTest('a reader that ends early: a list is complete, an archive is not', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/file': 'data' });
  for (let i = 0; i < 3000; i++) writeFileSync(join(dir, `upper/a-name-that-fills-the-pipe-${i}`), '');
  const list = sh(`"$@" pack --dry-run ${dir}/upper | true; exit \${PIPESTATUS[0]}`);
  t.deepEqual([list.status, list.stderr], [0, '']);
  const archive = sh(`"$@" pack ${dir}/upper | true; exit \${PIPESTATUS[0]}`);
  t.is(archive.status, 2);
  t.is(archive.stderr, 'overlayfs: the program that reads the archive ended before it had all\n');
});

kernelTest('a signal ends apply, and nothing temporary is left', async (t) => {
  const dir = scratch(t);
  const child = spawn(process.execPath, [program, 'apply', '-', join(dir, 'out')], {
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  const ended = new Promise((resolve) => child.on('exit', (_, signal) => resolve(signal)));
  // It has begun when the temporary directory is there, and waits for the rest.
  child.stdin.write(Buffer.alloc(512));
  while (readdirSync(dir).length === 0) await setTimeout(5);
  child.kill('SIGTERM');
  t.is(await ended, 'SIGTERM');
  t.deepEqual(readdirSync(dir), []);
});

kernelTest('pack to a full device names the reason', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/file': 'data' });
  const { code, stderr } = await overlayfs('pack', join(dir, 'upper'), '/dev/full');
  t.is(code, 2);
  t.regex(stderr, /reason: out-of-space/);
});

kernelTest('wrong calls and archives', async (t) => {
  const dir = scratch(t);
  writeFileSync(join(dir, 'text'), 'no archive'.repeat(100));
  makeTree(dir, { 'upper/.wh.x': '' });
  t.is((await overlayfs('apply', join(dir, 'text'))).code, 2);
  t.is((await overlayfs('apply', '--max-entries', 'many', join(dir, 'text'), join(dir, 'out'))).code, 2);
  t.is((await overlayfs('pack')).code, 2);
  t.is((await overlayfs('pack', '--json', join(dir, 'upper'))).code, 2);
  const bad = await overlayfs('apply', join(dir, 'text'), join(dir, 'out'));
  t.is(bad.code, 2);
  t.regex(bad.stderr, /at byte 0: the checksum of a header is wrong/);
  t.is((await overlayfs('pack', join(dir, 'upper'), join(dir, 'a.tar'))).code, 2);
  t.is((await overlayfs('pack', join(dir, 'upper'), join(dir, 'missing/a.tar'))).code, 2);
  t.false(existsSync(join(dir, 'out')));
  t.deepEqual(readdirSync(dir).sort(), ['text', 'upper']);
});

test('a bar by bytes', (t) => {
  t.is(
    formatProgress({ entries: 5, bytes: 2048, totalBytes: 4096 }),
    `[${'#'.repeat(12)}${'.'.repeat(12)}] 50 %, 5 entries, 2.0 KiB`,
  );
});
