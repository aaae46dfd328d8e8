/** Causes that forbid a rootless mount, made real: the error of the mount and the words of `features` say the same. */
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { chrooted } from '../../support/chroot.js';
import { makeTree, mountTest, scratch } from '../../support/index.js';
import { NOBODY } from '../../support/nobody.js';
import { asNobody, evaluateAs, giveTo } from '../../support/plain-user.js';

const needs = 'rootless';

interface Row {
  readonly title: string;
  /** A command that runs the program where it is forbidden. */
  readonly command: (t: ExecutionContext, dir: string) => readonly string[];
  /** Done by the program first. */
  readonly before?: string;
  readonly code: string;
  readonly what: RegExp;
  /** True if `features` has been told before that it is allowed. */
  readonly isRemembered?: true;
  /** True if no program can be started at all. */
  readonly isAlone?: true;
}

/** A plain user that is root of a user namespace, in which it sets a limit. */
const limited = (name: string, value: number) => () => {
  const script = `echo ${value} > /proc/sys/user/${name} && exec "$@"`;
  return [...asNobody, 'unshare', '-Ur', 'sh', '-c', script, 'sh'];
};

const filter = (errno: number) => `
  const { createRequire } = await import('node:module');
  const calls = process.arch === 'arm64' ? [220, 97] : [56, 272]; // clone, unshare; threads are made by clone3
  createRequire(process.cwd() + '/')('./build/Release/test_support.node').denyCalls(calls, ${errno});`;

const [EPERM, EACCES] = [1, 13];
const noNewPrivileges = () => [...asNobody, '--no-new-privs'];

const rows: readonly Row[] = [
  {
    title: 'no user namespaces allowed',
    command: limited('max_user_namespaces', 0),
    code: 'ENOSPC',
    what: /user\.max_user_namespaces is 0: have root raise it/i,
  },
  {
    title: 'no mount namespaces allowed',
    command: limited('max_mnt_namespaces', 0),
    code: 'ENOSPC',
    what: /user\.max_mnt_namespaces is 0: have root raise it/i,
  },
  {
    title: 'as many user namespaces as are allowed in use',
    command: limited('max_user_namespaces', 4),
    isRemembered: true,
    // The kernel counts those that it is about to free.
    before: `const held = [];
      const hold = async () => {
        for (;;) held.push(await overlayfs.mountOverlay({ ...layers, rootless: true }));
      };
      for (let i = 0; i < 5; i++) {
        await hold().catch(() => {});
        await new Promise((resolve) => setTimeout(resolve, 50));
      }`,
    code: 'ENOSPC',
    what: /the limit of namespaces is reached \(user\.max_user_namespaces=4, .*: unmount what you do not need/i,
  },
  {
    title: 'user namespaces nested too deep',
    command: () => [...asNobody, ...Array<string[]>(33).fill(['unshare', '-Ur']).flat()],
    code: 'ENOSPC',
    what: /or this namespace is 32 levels deep/,
  },
  {
    title: 'in a chroot',
    command: (t, dir) => chrooted(t, dir, `--userspec=${NOBODY}:${NOBODY}`, '--groups='),
    code: 'EPERM',
    what: /this process is chrooted.*pivot_root/,
  },
  {
    title: 'as a user whom the user namespace does not map',
    command: () => [...asNobody, 'unshare', '-U'],
    code: 'EPERM',
    what: /has no map for its user or its group.*unshare\(1\)/,
  },
  {
    title: 'under a seccomp filter',
    command: noNewPrivileges,
    before: filter(EPERM),
    code: 'EPERM',
    what: /a seccomp filter refuses it/,
    isAlone: true,
  },
  {
    title: 'under a seccomp filter with another errno',
    command: noNewPrivileges,
    before: filter(EACCES),
    code: 'EACCES',
    what: /a seccomp filter refuses it/,
    isAlone: true,
  },
];

for (const { title, command, before = '', code, what, isRemembered = false, isAlone = false } of rows) {
  mountTest(`forbidden: ${title}`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'lower/file': 'file', 'second/': '', 'upper/': '', 'work/': '' });
    giveTo(dir, join(dir, 'lower'), join(dir, 'upper'), join(dir, 'work'));
    const outcome = evaluateAs(
      command(t, dir),
      `const [dir] = args;
      const layers = { lowerdir: [join(dir, 'lower'), join(dir, 'second')] };
      ${before}
      const count = () => fs.readdirSync('/proc/self/fd').length;
      const upper = { upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
      const before = count();
      const errors = [];
      for (const rootless of [true, 'keep']) {
        errors.push(await overlayfs.mountOverlay({ ...layers, ...upper, rootless }).catch(fields));
        try { overlayfs.mountOverlaySync({ ...layers, ...upper, rootless }); } catch (error) { errors.push(fields(error)); }
      }
      const left = count() - before;
      const { rootless, rootlessForbidden } = await overlayfs.features();
      if (args[1] === 'true') return { errors, left, rootless, rootlessForbidden };
      const child = overlayfs.spawn('true', [], { hidden: [dir] });
      const spawned = await new Promise((resolve) => child.on('error', (error) => resolve(fields(error))).on('close', (code) => resolve(code)));
      return { errors, left, rootless, rootlessForbidden, spawned };`,
      dir,
      String(isAlone),
    ) as {
      readonly errors: readonly { readonly code: string; readonly reason: string; readonly message: string }[];
      readonly left: number;
      readonly rootless: boolean;
      readonly rootlessForbidden: string;
      readonly spawned: { readonly message: string };
    };
    t.is(outcome.errors?.length, 4, JSON.stringify(outcome));
    for (const error of outcome.errors) {
      t.like(error, { code, reason: 'rootless-forbidden' });
      t.regex(error.message.replace(/\. (?=Have|Unmount|Run)/, ': '), what);
    }
    t.is(outcome.left, 0);
    t.is(outcome.rootless, isRemembered);
    if (!isRemembered) t.regex(outcome.rootlessForbidden, what);
    if (!isAlone) t.like(outcome.spawned, { code, reason: 'rootless-forbidden' });
  });
}
