/**
 * The rows of docs/rootless.md that forbid a rootless mount, each from gathered facts. Imports internals: one machine
 * cannot have all these settings.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import * as e from '#lib/errnos.js';
import { type Call, calls } from '#lib/kernel/calls.js';
import { FSCONFIG_CMD_CREATE, FSCONFIG_SET_STRING } from '#lib/kernel/constants.js';
import { Plan } from '#lib/kernel/plan.js';
import { explainRefusal, type NamespaceSettings, readNamespaceSettings } from '#lib/rootless/refusal.js';
import { packageRoot } from '../../support/index.js';

const open: NamespaceSettings = {
  maxUserNamespaces: 15000,
  maxMountNamespaces: 15000,
  unprivilegedClone: undefined,
  appArmorRestricts: undefined,
  hasSeccompFilter: false,
  isChrooted: false,
  missingCapabilities: [],
  isUnmapped: false,
  ownsProcFiles: true,
};

interface Row {
  /** As the page has it. */
  readonly cause: string;
  readonly call: Call;
  readonly errno: number;
  readonly settings?: Partial<NamespaceSettings>;
  readonly what: RegExp;
}

const appArmorRestricts = 1;
const rows: readonly Row[] = [
  {
    cause: '`user.max_user_namespaces` is 0',
    call: calls.unshare,
    errno: e.ENOSPC,
    settings: { maxUserNamespaces: 0 },
    what: /^user\.max_user_namespaces is 0$/,
  },
  {
    cause: '`user.max_mnt_namespaces` is 0',
    call: calls.unshare,
    errno: e.ENOSPC,
    settings: { maxMountNamespaces: 0 },
    what: /^user\.max_mnt_namespaces is 0$/,
  },
  {
    cause: 'as many as these allow are in use',
    call: calls.unshare,
    errno: e.ENOSPC,
    what: /the limit of namespaces is reached .*=15000/,
  },
  { cause: 'more than 32 levels of user namespaces', call: calls.unshare, errno: e.ENOSPC, what: /32 levels/ },
  {
    cause: 'the process is chrooted',
    call: calls.unshare,
    errno: e.EPERM,
    settings: { isChrooted: true },
    what: /chrooted/,
  },
  {
    cause: 'the process is root without CAP_SETUID, CAP_SETGID or CAP_SETFCAP',
    call: calls.write,
    errno: e.EPERM,
    settings: { missingCapabilities: ['CAP_SETFCAP'] },
    what: /root without CAP_SETFCAP$/,
  },
  {
    cause: 'the user namespace of the process has no map for its user or its group',
    call: calls.unshare,
    errno: e.EPERM,
    settings: { isUnmapped: true },
    what: /has no map for its user/,
  },
  {
    cause: '`kernel.unprivileged_userns_clone` is 0 (Debian, Arch)',
    call: calls.unshare,
    errno: e.EPERM,
    settings: { unprivilegedClone: 0 },
    what: /unprivileged_userns_clone is 0/,
  },
  {
    cause: "a container's seccomp profile",
    call: calls.unshare,
    errno: e.EPERM,
    settings: { hasSeccompFilter: true },
    what: /seccomp/,
  },
  { cause: 'another security module', call: calls.unshare, errno: e.EPERM, what: /security module/ },
  {
    cause: '`kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu), and the program has no profile',
    call: calls.unshare,
    errno: e.EACCES,
    settings: { appArmorRestricts },
    what: /AppArmor/,
  },
  {
    cause: 'the same, with the capabilities taken away afterwards',
    call: calls.write,
    errno: e.EPERM,
    settings: { appArmorRestricts },
    what: /AppArmor/,
  },
  {
    cause:
      'the process has changed its user since it started, and this user may not execute the launcher of the package',
    call: calls.write,
    errno: e.EACCES,
    settings: { ownsProcFiles: false },
    what: /changed its user/,
  },
  { cause: 'the kernel is built without user namespaces', call: calls.unshare, errno: e.EINVAL, what: /built without/ },
  {
    cause: 'the kernel is older than 5.11',
    call: calls.fsconfig,
    errno: e.EPERM,
    what: /does not allow overlays in user namespaces/,
  },
];

function planWith(call: Call): Plan {
  const plan = new Plan();
  plan.isInChild = true;
  plan.add(call, call === calls.fsconfig ? [0, FSCONFIG_CMD_CREATE, null, null] : []);
  return plan;
}

for (const { cause, call, errno, settings, what } of rows) {
  test(`${cause}: ${call.name}, errno ${errno}`, (t) => {
    const plan = planWith(call);
    const refusal = explainRefusal({ plan, step: plan.steps[0], errno }, { ...open, ...settings });
    t.regex(refusal?.what ?? '', what);
    t.truthy(refusal?.hint);
  });
}

test('AppArmor can refuse each step of the mount', (t) => {
  for (const [call, errno] of [
    [calls.write, e.EACCES],
    [calls.fsopen, e.EPERM],
    [calls.fsopen, e.EACCES],
    [calls.fsconfig, e.EACCES],
    [calls.fsmount, e.EPERM],
  ] as const) {
    const plan = planWith(call);
    const refusal = explainRefusal({ plan, step: plan.steps[0], errno }, { ...open, appArmorRestricts });
    t.regex(refusal?.what ?? '', /AppArmor/);
  }
});

test('what is no matter of namespaces is left to the other rules', (t) => {
  const plan = planWith(calls.fsopen);
  t.is(explainRefusal({ plan, step: plan.steps[0], errno: e.ENODEV }, open), undefined);
  const option = new Plan();
  option.isInChild = true;
  option.add(calls.fsconfig, [0, FSCONFIG_SET_STRING, 'metacopy', 'on']);
  t.is(explainRefusal({ plan: option, step: option.steps[0], errno: e.EPERM }, open), undefined);
  const newer = new Plan();
  newer.isInChild = true;
  newer.add(calls.fsconfig, [0, FSCONFIG_SET_STRING, 'lowerdir+', '/l']);
  newer.add(calls.fsconfig, [0, FSCONFIG_CMD_CREATE, null, null]);
  t.is(explainRefusal({ plan: newer, step: newer.steps[1], errno: e.EPERM }, open), undefined);
  const privileged = planWith(calls.fsopen);
  privileged.isInChild = false;
  t.is(explainRefusal({ plan: privileged, step: privileged.steps[0], errno: e.EPERM }, open), undefined);
});

test('this machine has settings', (t) => {
  const { maxUserNamespaces, isChrooted } = readNamespaceSettings();
  t.true(maxUserNamespaces === undefined || maxUserNamespaces >= 0);
  t.is(typeof isChrooted, 'boolean');
});

test('docs/rootless.md has these rows', (t) => {
  const page = readFileSync(join(packageRoot, 'docs/rootless.md'), 'utf8');
  const section = page.split(/^## /m).find((text) => text.startsWith('Causes that forbid it')) ?? '';
  const shown = Array.from(section.matchAll(/^\| (?!---|cause)(.*?) \|/gm), ([, cell = '']) => cell);
  t.deepEqual(
    shown,
    rows.map(({ cause }) => cause),
  );
});
