/** Programs that are waited for. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { mountOverlay, ProgramError, run } from 'overlayfs';
import { countDescriptors, makeTree, mountTest, scratch } from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';

const sh = (script: string, options = {}) => run('sh', ['-c', script], options);

mountTest('the output, the input, and how a program ends', { needs: 'rootless' }, async (t) => {
  const descriptors = countDescriptors();
  const ended = { exitCode: 0, signal: null, timedOut: false, stdout: '', stderr: '' };
  t.deepEqual(await sh('cat; echo wrong >&2; exit 3', { input: 'in' }), {
    ...ended,
    ...{ exitCode: 3, stdout: 'in', stderr: 'wrong\n' },
  });
  t.deepEqual(await run('cat'), ended, 'a program does not wait for an input that nobody gives');
  t.deepEqual(await run('true', [], { input: Buffer.alloc(1e6) }), ended, 'nor does a program have to read it');
  t.deepEqual(await sh('kill -USR1 $$'), { ...ended, exitCode: null, signal: 'SIGUSR1' });
  // Others hold the output open.
  const late = { exitCode: null, signal: 'SIGTERM' as const, timedOut: true, stdout: 'out\n' };
  t.deepEqual(await sh('sleep 77 & echo out; sleep 77', { timeout: 2000, unshare: ['pid'] }), { ...ended, ...late });
  t.deepEqual(await sh('sleep 7 & echo out; sleep 7', { timeout: 2000 }), { ...ended, ...late });
  const split = `printf '\\303'; sleep 0.1; printf '\\274'; printf '\\377' >&2`;
  t.like(await sh(split), { stdout: 'ü', stderr: '\ufffd' });
  t.like(await sh(split, { encoding: 'buffer' }), { stdout: Buffer.from('ü'), stderr: Buffer.from([255]) });
  t.like(await sh('echo in; echo lost >&2', { stdio: ['pipe', 'pipe', 'ignore'] }), { stdout: 'in\n', stderr: '' });
  t.is(countDescriptors(), descriptors);
});

mountTest('a program is an error only if it does not start, or with `check`', { needs: 'rootless' }, async (t) => {
  const failed = { instanceOf: ProgramError, code: 'ERR_PROGRAM_FAILED' };
  const error = await t.throwsAsync(sh('echo some; echo first >&2; echo last >&2; exit 3', { check: true }), failed);
  t.like(error, { exitCode: 3, signal: null, stdout: 'some\n', stderr: 'first\nlast\n' });
  t.regex(error?.message ?? '', /'sh -c .*' ended with 3: last\. /);
  t.regex((await t.throwsAsync(sh('kill $$', { check: true }), failed))?.message ?? '', /ended by SIGTERM\. /);
  const late = sh('sleep 7', { check: true, timeout: 50 });
  t.regex((await t.throwsAsync(late, failed))?.message ?? '', /ended by SIGTERM when its time was over\. /);
  t.like(await sh('true', { check: true }), { exitCode: 0 });
  await t.throwsAsync(run('no-such-program'), {
    code: 'ENOENT',
    message: /'no-such-program' does not exist in the directories of PATH/,
  });
  await t.throwsAsync(run('true', [], { cwd: '/none' }), { code: 'ENOENT', message: /cannot start in '\/none'/ });
  await t.throwsAsync(sh('sleep 7', { signal: AbortSignal.timeout(50) }), { code: 'ABORT_ERR' });
  const over = { instanceOf: ProgramError, code: 'ERR_PROGRAM_OUTPUT', message: /more than 5 bytes.*`maxBuffer`/ };
  t.like(await t.throwsAsync(sh('echo 12345; sleep 7', { maxBuffer: 5 }), over), { stdout: '12345' });
  t.like(await sh('printf 12345', { maxBuffer: 5 }), { stdout: '12345' });
});

test('arguments of `run` that are wrong are named', async (t) => {
  const refused = (options: object, code: string, message: RegExp) =>
    t.throwsAsync(run('true', [], options), { code, message });
  await refused({ input: 5 }, 'ERR_INVALID_ARG_TYPE', /"input".*5/);
  await refused({ maxBuffer: -1 }, 'ERR_OUT_OF_RANGE', /"maxBuffer".*-1/);
  await refused({ maxBuffer: '1' }, 'ERR_INVALID_ARG_TYPE', /"maxBuffer".*'1'/);
  await refused({ encoding: 'latin1' }, 'ERR_INVALID_ARG_VALUE', /"encoding".*'latin1'/);
  await refused({ check: 1 }, 'ERR_INVALID_ARG_TYPE', /"check".*1/);
  await refused({ input: '', stdio: ['inherit'] }, 'ERR_INVALID_ARG_VALUE', /`input`.*`stdio`/);
});

mountTest('an overlay runs a program at its target, at its only lower layer, or where it is told', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/file': 'lower', 'second/': '', 'upper/': '', 'work/': '', 'merged/': '' });
  const at = (name: string): string => join(dir, name);
  const given = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work') };
  const script = ['-c', 'pwd; echo "$0" > file'];
  await using attached = await mountOverlay({ ...given, target: at('merged') });
  t.like(await attached.run('sh', [...script, 'one'], { check: true }), { stdout: `${at('merged')}\n` });
  t.is(readFileSync(at('merged/file'), 'utf8'), 'one\n');
  t.like(await attached.run('sh', [...script, 'two'], { target: at('second') }), { stdout: `${at('second')}\n` });
  t.is(readFileSync(at('merged/file'), 'utf8'), 'two\n');
  await attached.unmount();
  await using detached = await mountOverlay(given);
  t.like(await detached.run('sh', [...script, 'three']), { stdout: `${at('lower')}\n`, exitCode: 0 });
  t.is(readFileSync(at('lower/file'), 'utf8'), 'lower');
  t.is(readFileSync(at('upper/file'), 'utf8'), 'three\n');
  t.like(await detached.run('cat', ['file'], { encoding: 'buffer' }), { stdout: Buffer.from('three\n') });
  await detached.unmount();
  await t.throwsAsync(detached.run('true'), {
    code: 'ERR_INVALID_ARG_VALUE',
    message: /`mounts\[0\]\.source` is unmounted/,
  });
  await using two = await mountOverlay({ lowerdir: [at('lower'), at('second')] });
  await t.throwsAsync(two.run('true'), { code: 'ERR_INVALID_ARG_TYPE', message: /"target".*of 2 lower layers/ });
  t.like(await two.run('ls', [], { target: at('second') }), { stdout: 'file\n' });
});

mountTest('an overlay of a plain user runs programs in the place of its lower layer', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/file': 'lower', 'upper/': '', 'work/': '' });
  giveTo(dir, ...['lower', 'lower/file', 'upper', 'work'].map((name) => join(dir, name)));
  const outcome = evaluateAsNobody(
    `const [dir] = args;
    const mount = await overlayfs.mountOverlay({ lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work'), rootless: 'auto' });
    const { exitCode, stdout } = await mount.run('sh', ['-c', 'pwd; echo new > file; git init -q; git status -s']);
    const { stdout: again } = await mount.run('cat', ['file']);
    await mount.unmount();
    return [exitCode, stdout, again];`,
    dir,
  );
  t.deepEqual(outcome, [0, `${join(dir, 'lower')}\n?? file\n`, 'new\n']);
  t.is(readFileSync(join(dir, 'lower/file'), 'utf8'), 'lower');
});
