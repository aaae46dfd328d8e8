/**
 * What a program can do with the files of a rootless mount, and what it cannot: a row of docs/rootless.md each.
 * The code runs as the plain user, with the mount's path in `path` and the layers in `dir`.
 */

import { NOBODY } from '../../support/nobody.js';

export interface Row {
  /** As the page has it. */
  readonly title: string;
  readonly code: string;
  /** What the code comes to, or the code of the error that it throws. */
  readonly outcome: unknown;
  /** The device node of a lower needs mknod(2). */
  readonly needs?: 'mknod';
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
    title: 'open a device node of a lower layer',
    code: `fs.openSync(join(path, 'null'), 'r')`,
    outcome: 'EACCES',
    needs: 'mknod',
  },
  {
    title: 'rename a directory of a lower layer',
    code: `fs.renameSync(join(path, 'tree'), join(path, 'tree2'))`,
    outcome: 'EXDEV',
  },
  { title: '`fs.realpath`', code: `fs.realpathSync(join(path, 'file'))`, outcome: 'ENOENT' },
  {
    title: '`require` and `import`',
    code: `const { createRequire } = await import('node:module'); createRequire('/')(join(path, 'module.cjs'))`,
    outcome: 'ENOENT',
  },
  {
    title: '`process.cwd()` in it',
    code: `const before = process.cwd(); process.chdir(path); try { return process.cwd() } finally { process.chdir(before) }`,
    outcome: 'ENOENT',
  },
  {
    title: 'run git or node in it',
    code: `const { status } = childProcess.spawnSync(process.execPath, ['module.cjs'], { cwd: path, stdio: 'ignore' }); return status !== 0`,
    outcome: true,
  },
  {
    title: 'execute a script by its path: the interpreter has no such descriptor',
    code: `return childProcess.spawnSync(join(path, 'script')).status !== 0`,
    outcome: true,
  },
  {
    title: 'have a set-user-ID bit honoured',
    code: `const { status, stdout, error } = childProcess.spawnSync(join(path, 'setuid'), ['-u'], { encoding: 'utf8' }); return ${ran}`,
    outcome: String(NOBODY),
  },
];
