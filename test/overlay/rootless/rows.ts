/**
 * The calls that a program can make on the files of a rootless mount, and those that fail: a row of docs/rootless.md
 * each.
 * The code runs as the plain user, with the mount's path in `path` and the layers in `dir`.
 */

import { NOBODY } from '../../support/nobody.js';

export interface Row {
  /** As the page has it. */
  readonly title: string;
  readonly code: string;
  /** The result of the code, or the code of the error that it throws. */
  readonly outcome: unknown;
  /** The device node of a lower needs mknod(2). */
  readonly needs?: 'mknod' | 'O_TMPFILE';
}

const ran = 'status === 0 ? stdout.trim() : (error?.code ?? status)';

export const can: readonly Row[] = [
  {
    title: 'read a file, and list a directory',
    code: `return [fs.readFileSync(join(path, 'file'), 'utf8'), fs.readdirSync(join(path, 'tree'))]`,
    outcome: ['file', ['a', 'b']],
  },
  {
    title: 'create, write, append, truncate',
    code: `fs.writeFileSync(join(path, 'new'), 'new'); fs.appendFileSync(join(path, 'file'), '+'); fs.truncateSync(join(path, 'new'), 1); return [fs.readFileSync(join(dir, 'upper/new'), 'utf8'), fs.readFileSync(join(dir, 'upper/file'), 'utf8'), fs.readFileSync(join(dir, 'lower/file'), 'utf8')]`,
    outcome: ['n', 'file+', 'file'],
  },
  {
    title: 'delete a file: a whiteout, a device 0:0 that the user owns',
    code: `fs.unlinkSync(join(path, 'gone')); const { rdev, uid, mode } = fs.lstatSync(join(dir, 'upper/gone')); return [fs.existsSync(join(path, 'gone')), rdev, uid, mode & 0o170000]`,
    outcome: [false, 0, NOBODY, 0o020000],
  },
  {
    title: "delete another owner's file of a directory of one's own",
    code: `fs.unlinkSync(join(path, 'roots-gone')); return fs.existsSync(join(path, 'roots-gone'))`,
    outcome: false,
  },
  {
    title: 'remove a directory and make it again, empty',
    code: `fs.rmSync(join(path, 'again'), { recursive: true }); fs.mkdirSync(join(path, 'again')); return fs.readdirSync(join(path, 'again'))`,
    outcome: [],
  },
  {
    title: 'rename a file',
    code: `fs.renameSync(join(path, 'old'), join(path, 'renamed')); return fs.readFileSync(join(path, 'renamed'), 'utf8')`,
    outcome: 'old',
  },
  {
    title: 'make links, symbolic links, and directories',
    code: `fs.linkSync(join(path, 'file'), join(path, 'link')); fs.symlinkSync('file', join(path, 'symlink')); fs.mkdirSync(join(path, 'made/deep'), { recursive: true }); return [fs.statSync(join(path, 'link')).nlink, fs.readFileSync(join(path, 'symlink'), 'utf8').length > 0]`,
    outcome: [2, true],
  },
  {
    title: "change the mode and the times of one's own files",
    code: `fs.chmodSync(join(path, 'file'), 0o600); fs.utimesSync(join(path, 'file'), 1, 1); return [fs.statSync(join(path, 'file')).mode & 0o777, fs.statSync(join(path, 'file')).mtimeMs]`,
    outcome: [0o600, 1000],
  },
  {
    title: 'have a file synced',
    code: `const fd = fs.openSync(join(path, 'synced'), 'w'); fs.writeSync(fd, 'synced'); fs.fsyncSync(fd); fs.fdatasyncSync(fd); fs.closeSync(fd); return fs.readFileSync(join(dir, 'upper/synced'), 'utf8')`,
    outcome: 'synced',
  },
  {
    title: 'make a file without a name (`O_TMPFILE`, Linux 6.10)',
    needs: 'O_TMPFILE',
    code: `const fd = fs.openSync(path, 0o20000000 | fs.constants.O_DIRECTORY | fs.constants.O_RDWR, 0o600); fs.writeSync(fd, 'x'); const { size, nlink } = fs.fstatSync(fd); fs.closeSync(fd); return [size, nlink]`,
    outcome: [1, 0],
  },
  {
    title: 'watch a directory (`fs.watch`)',
    code: `const seen = new Promise((resolve) => { const watcher = fs.watch(join(path, 'tree'), (event, name) => { watcher.close(); resolve(name); }); }); fs.writeFileSync(join(path, 'tree/a'), 'a'); return await seen`,
    outcome: 'a',
  },
  {
    title: 'make a FIFO',
    code: `childProcess.spawnSync('mkfifo', [join(path.replace('self', process.pid), 'fifo')]); return fs.lstatSync(join(path, 'fifo')).isFIFO()`,
    outcome: true,
  },
  {
    title: 'give a file attributes of `user.*`',
    code: `const of = join(path.replace('self', process.pid), 'file'); childProcess.spawnSync('setfattr', ['-n', 'user.mark', '-v', 'set', of]); const { stdout } = childProcess.spawnSync('getfattr', ['--only-values', '-n', 'user.mark', of], { encoding: 'utf8' }); return stdout`,
    outcome: 'set',
  },
  {
    title: 'see who owns a file on disk',
    code: `return [fs.statSync(join(path, 'file')).uid, fs.statSync(join(path, 'roots')).uid]`,
    outcome: [NOBODY, 0],
  },
  {
    title: 'copy a tree, and remove it',
    code: `fs.cpSync(join(path, 'tree'), join(path, 'copy'), { recursive: true }); const names = fs.readdirSync(join(path, 'copy')); fs.rmSync(join(path, 'copy'), { recursive: true }); return names`,
    outcome: ['a', 'b'],
  },
  {
    title: 'execute a binary',
    code: `const { status, stdout, error } = childProcess.spawnSync(join(path, 'true'), { encoding: 'utf8' }); return ${ran}`,
    outcome: '',
  },
  {
    title: 'have a program work in it by relative paths',
    code: `const { status, stdout, error } = childProcess.spawnSync('cat', ['tree/a'], { cwd: path, encoding: 'utf8' }); return ${ran}`,
    outcome: 'a',
  },
  {
    title: 'have another process of the user reach it by `/proc/PID/fd/N`',
    code: `const other = path.replace('self', process.pid); const { status, stdout, error } = childProcess.spawnSync('cat', [join(other, 'tree/b')], { encoding: 'utf8' }); return ${ran}`,
    outcome: 'b',
  },
  {
    title: 'and by a symbolic link to that',
    code: `const link = join(dir, 'link'); fs.symlinkSync(path.replace('self', process.pid), link); const { status, stdout, error } = childProcess.spawnSync('cat', [join(link, 'tree/b')], { encoding: 'utf8' }); fs.unlinkSync(link); return ${ran}`,
    outcome: 'b',
  },
  {
    title: 'have a child inherit it: `stdio: [0, 1, 2, mount.fd]`',
    code: `const { status, stdout, error } = childProcess.spawnSync('cat', ['/proc/self/fd/3/tree/a'], { stdio: ['ignore', 'pipe', 'inherit', mount.fd], encoding: 'utf8' }); return ${ran}`,
    outcome: 'a',
  },
];

export const cannot: readonly Row[] = [
  {
    title: "write to another owner's file, even one of mode 666",
    code: `fs.appendFileSync(join(path, 'roots'), '+')`,
    outcome: 'EOVERFLOW',
  },
  {
    title: "read another owner's file of mode 600",
    code: `fs.readFileSync(join(path, 'roots-own'))`,
    outcome: 'EACCES',
  },
  {
    title: "change the mode of another owner's file",
    code: `fs.chmodSync(join(path, 'roots'), 0o600)`,
    outcome: 'EPERM',
  },
  { title: 'give a file away', code: `fs.chownSync(join(path, 'tree/a'), 0, 0)`, outcome: 'EPERM' },
  {
    title: 'make a device node',
    code: `return childProcess.spawnSync('mknod', [join(path.replace('self', process.pid), 'device'), 'c', '1', '3'], { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } }).stderr.includes('Operation not permitted')`,
    outcome: true,
  },
  {
    title: 'make a whiteout by hand (`mknod c 0 0`)',
    code: `return childProcess.spawnSync('mknod', [join(path.replace('self', process.pid), 'whiteout'), 'c', '0', '0'], { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } }).stderr.includes('Operation not permitted')`,
    outcome: true,
  },
  {
    title: 'open a device node of a lower layer',
    code: `fs.openSync(join(path, 'null'), 'r')`,
    outcome: 'EACCES',
    needs: 'mknod',
  },
  {
    title: 'rename a directory of a lower layer, or one that is in several',
    code: `const codes = ['tree', 'merged'].map((name) => { try { fs.renameSync(join(path, name), join(path, 'other')); } catch ({ code }) { return code; } }); return codes`,
    outcome: ['EXDEV', 'EXDEV'],
  },
  {
    title: 'remove it as a whole: `path` is a link to `fs.rm`, `fs.cp` and `fs.lstat`; `path + "/"` is the directory',
    code: `try { fs.rmSync(path, { recursive: true, force: true }); } catch ({ code }) { return [code, fs.existsSync(join(path, 'tree'))]; }`,
    outcome: ['EPERM', true],
  },
  {
    title: 'write beside it, by `..`',
    code: `fs.writeFileSync(path + '/../beside', '')`,
    outcome: 'EACCES',
  },
  { title: '`fs.realpath`', code: `fs.realpathSync(path)`, outcome: 'ENOENT' },
  {
    title: '`require` and `import`',
    code: `const { createRequire } = await import('node:module'); createRequire('/')(join(path, 'module.cjs'))`,
    outcome: 'ENOENT',
  },
  {
    title: 'attach it somewhere, or clone it',
    code: `fs.mkdirSync(join(dir, 'place'), { recursive: true }); return Promise.all([mount.attach(join(dir, 'place')), mount.clone()].map((done) => done.catch(({ code, reason }) => [code, reason])))`,
    outcome: [
      ['EPERM', 'no-privilege'],
      ['EPERM', 'no-privilege'],
    ],
  },
  {
    title: '`process.cwd()` in it',
    code: `const before = process.cwd(); process.chdir(path); try { return process.cwd() } finally { process.chdir(before) }`,
    outcome: 'ENOENT',
  },
  {
    title: 'run git or node in it',
    code: `return [[process.execPath, 'module.cjs'], ['git', 'init']].map(([program, ...args]) => childProcess.spawnSync(program, args, { cwd: path, stdio: 'ignore' }).status !== 0)`,
    outcome: [true, true],
  },
  {
    title: 'execute a script by its path: the interpreter has no such descriptor',
    code: `const run = (base) => childProcess.spawnSync(join(base, 'script')).status; return [run(path) !== 0, run(path.replace('self', process.pid))]`,
    outcome: [true, 0],
  },
  {
    title: 'have a set-user-ID bit honoured',
    code: `const { status, stdout, error } = childProcess.spawnSync(join(path, 'setuid'), ['-u'], { encoding: 'utf8' }); return ${ran}`,
    outcome: String(NOBODY),
  },
];
