import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { mountOverlay, mountOverlaySync, type OverlayOptions, unmount, unmountSync } from 'overlayfs';
import { optionTable } from '#lib/options/table.js';
import {
  countDescriptors,
  hasFeature,
  layers,
  mountsBelow,
  mountTest,
  native,
  scaled,
  scratch,
} from '../support/index.js';

/** The kernel's answer for an upper on a read-only mount: in 5.10 the errno of what it tried, later one for all. */
const READ_ONLY = hasFeature('mountSetattr') ? 'EINVAL' : 'EROFS';

type Given = Record<string, unknown>;

/** A call that is wrong whatever the machine: the code, and what the text has to name. */
const wrongArguments: Readonly<Record<string, [options: unknown, code: string, ...named: (string | RegExp)[]]>> =
  (() => {
    const good = { lowerdir: '/l', upperdir: '/u', workdir: '/w', target: '/m' };
    const type = 'ERR_INVALID_ARG_TYPE';
    const value = 'ERR_INVALID_ARG_VALUE';
    return {
      'no options': [undefined, type, 'options', 'undefined'],
      'options null': [null, type, 'options', 'null'],
      'options a list': [['/l'], type, 'options'],
      'no lowerdir': [{ ...good, lowerdir: undefined }, type, 'lowerdir', 'undefined'],
      'lowerdir an empty list': [{ ...good, lowerdir: [] }, 'ERR_OUT_OF_RANGE', 'lowerdir', '1 to 500', '0 paths'],
      '501 layers': [
        { ...good, lowerdir: Array(501).fill('/l') },
        'ERR_OUT_OF_RANGE',
        'lowerdir',
        '1 to 500',
        '501 paths',
      ],
      'lowerdir null': [{ ...good, lowerdir: null }, type, 'lowerdir', 'null'],
      'a lowerdir a number': [{ ...good, lowerdir: ['/l', 7] }, type, 'lowerdir[1]', '7'],
      'an empty lowerdir': [{ ...good, lowerdir: ['/l', ''] }, value, 'lowerdir[1]', "''"],
      'a lowerdir with NUL': [{ ...good, lowerdir: '/l\0x' }, value, 'lowerdir', 'NUL', '/l\\x00x'],
      'an upperdir Buffer with NUL': [{ ...good, upperdir: Buffer.from('/u\0') }, value, 'upperdir', 'NUL'],
      'an upperdir true': [{ ...good, upperdir: true }, type, 'upperdir', 'true'],
      'a http URL': [{ ...good, upperdir: new URL('http://host/u') }, 'ERR_INVALID_URL_SCHEME', 'file'],
      'an empty target': [{ ...good, target: '' }, value, 'target', "''"],
      'upper without work': [{ ...good, workdir: undefined }, value, 'upperdir', 'workdir', "'/u'", 'create'],
      'work without upper': [{ ...good, upperdir: undefined }, value, 'workdir', 'upperdir', "'/w'"],
      'an unknown option': [{ ...good, redirect_dir: 'on' }, value, 'redirect_dir', 'redirectDir', "'on'"],
      'a misspelt option': [{ ...good, lowerDirs: [] }, value, 'lowerDirs', '"lowerdir"'],
      'an option far from any': [{ ...good, zzzzzzzzzz: 1 }, value, 'zzzzzzzzzz', 'lowerdir, datadir'],
      "redirectDir: 'yes'": [{ ...good, redirectDir: 'yes' }, value, 'redirectDir', "'yes'", "'on'", "'nofollow'"],
      'redirectDir: true': [{ ...good, redirectDir: true }, type, 'redirectDir', 'true', "'on'"],
      "index: 'on'": [{ ...good, index: 'on' }, type, 'index', "'on'", 'true or false'],
      'volatile: 1': [{ ...good, volatile: 1 }, type, 'volatile', '1'],
      'readonly: null': [{ ...good, readonly: null }, type, 'readonly', 'null'],
      "atime: 'never'": [{ ...good, atime: 'never' }, value, 'atime', "'never'", "'noatime'"],
      'an empty source': [{ ...good, source: '' }, value, 'source', "''"],
      'a long source': [{ ...good, source: 'x'.repeat(256) }, value, 'source', '255'],
      'source a Buffer': [{ ...good, source: Buffer.from('x') }, type, 'source'],
      'a signal that is none': [{ ...good, signal: {} }, type, 'signal', 'AbortSignal'],
      'create: "yes"': [{ ...good, create: 'yes' }, type, 'create', "'yes'"],
      'stack: 0': [{ ...good, stack: 0 }, type, 'stack', '0'],
    };
  })();

for (const [title, [options, code, ...named]] of Object.entries(wrongArguments)) {
  test(`refused: ${title}`, async (t) => {
    const given = options as OverlayOptions;
    const error = t.throws(() => mountOverlaySync(given), { code });
    t.true(error instanceof TypeError || error instanceof RangeError);
    for (const word of named) {
      if (typeof word === 'string') t.true(error?.message.includes(word), `${word} in: ${error?.message}`);
      else t.regex(error?.message ?? '', word);
    }
    const rejected = await t.throwsAsync(() => mountOverlay(given), { code });
    t.is(rejected?.message, error?.message);
  });
}

test('each option of the table refuses a symbol by its name', (t) => {
  for (const name of Object.keys(optionTable)) {
    const options = { lowerdir: '/l', upperdir: '/u', workdir: '/w', target: '/m', [name]: Symbol('none') };
    const error = t.throws(() => mountOverlaySync(options as unknown as OverlayOptions), undefined, name);
    t.true(error?.message.includes(name), error?.message);
  }
});

test('a message has one line, whatever was given', (t) => {
  for (const value of [Array(400).fill({}), Array(30).fill(7), new Error('two\nlines'), { a: '\n'.repeat(200) }]) {
    const error = t.throws(() => mountOverlaySync({ lowerdir: '/l', upperdir: value } as unknown as OverlayOptions));
    t.notRegex(error.message, /\n/);
    t.true(error.message.length < 300);
  }
});

test('an unknown name of any length is refused at once', (t) => {
  const started = performance.now();
  const options = { lowerdir: '/l', ['x'.repeat(1_000_000)]: true } as unknown as OverlayOptions;
  const error = t.throws(() => mountOverlaySync(options), { code: 'ERR_INVALID_ARG_VALUE' });
  t.true(error.message.length < 1000);
  t.true(performance.now() - started < 500);
});

test.serial('what every object inherits is no option', async (t) => {
  class Accessors {
    get lowerdir() {
      return '/none/lower';
    }
    get upperdir() {
      return '/none/upper';
    }
    get target() {
      return '/none/target';
    }
  }
  const polluted = Object.prototype as Record<string, unknown>;
  for (const [name, value] of Object.entries({
    zzz: 1,
    volatile: 'yes',
    workdir: 7,
    detach: 1,
    timeout: 'x',
    container: 1,
  })) {
    Object.defineProperty(polluted, name, { value, enumerable: true, configurable: true, writable: true });
  }
  try {
    for (const options of [
      { lowerdir: ['/none/l', '/none/m'], target: '/none/t' },
      Object.create({ lowerdir: ['/none/l', '/none/m'], target: '/none/t' }),
    ]) {
      t.throws(() => mountOverlaySync(options), { code: 'ENOENT' });
    }
    t.throws(() => mountOverlaySync(new Accessors() as OverlayOptions), { message: /needs `workdir`/ });
    t.throws(() => mountOverlaySync({ lowerdir: '/none/l' }), { code: 'ENOENT' });
    const range = [{ host: 1, size: 1 }] as never;
    t.throws(() => mountOverlaySync({ lowerdir: ['/l', '/m'], idmap: range }), {
      message: /idmap\[0\]\.container.*undefined/,
    });
    t.throws(() => unmountSync('/none/t', {}), { code: 'ENOENT' });
    await t.throwsAsync(() => unmount('/none/t'), { code: 'ENOENT' });
  } finally {
    for (const name of Object.keys(polluted)) delete polluted[name];
  }
});

test('options that conflict say so in a word too', (t) => {
  const error = t.throws(() => mountOverlaySync({ lowerdir: '/l', workdir: '/w', target: '/m' }));
  t.like(error, { reason: 'conflicting-options' });
  t.true('hint' in (error as Error));
});

interface Row {
  readonly change: (options: ReturnType<typeof layers>, dir: string) => Given;
  readonly code: string;
  readonly reason: string;
  /** Relative to the directory of the test. */
  readonly path: string;
}

/** Mistakes that only a look at the file system shows. */
const wrongPaths: Readonly<Record<string, Row>> = {
  'a lowerdir that is missing': {
    change: (options, dir) => ({ lowerdir: [options.lowerdir, join(dir, 'none')] }),
    code: 'ENOENT',
    reason: 'lower-missing',
    path: 'none',
  },
  'a lowerdir that is a file': {
    change: (options) => ({ lowerdir: join(options.lowerdir, 'from-lower') }),
    code: 'ENOTDIR',
    reason: 'lower-not-directory',
    path: 'lower/from-lower',
  },
  'a lowerdir below a file': {
    change: (options) => ({ lowerdir: join(options.lowerdir, 'from-lower/x') }),
    code: 'ENOTDIR',
    reason: 'path-inaccessible',
    path: 'lower/from-lower/x',
  },
  'a lowerdir that is a link in a circle': {
    change: (_, dir) => {
      symlinkSync('circle', join(dir, 'circle'));
      return { lowerdir: join(dir, 'circle') };
    },
    code: 'ELOOP',
    reason: 'path-inaccessible',
    path: 'circle',
  },
  'a name of 256 bytes': {
    change: (_, dir) => ({ lowerdir: join(dir, 'x'.repeat(256)) }),
    code: 'ENAMETOOLONG',
    reason: 'path-inaccessible',
    path: 'x'.repeat(256),
  },
  'an upperdir that is missing': {
    change: (_, dir) => ({ upperdir: join(dir, 'none') }),
    code: 'ENOENT',
    reason: 'upper-missing',
    path: 'none',
  },
  'an upperdir that is a file': {
    change: (options) => ({ upperdir: join(options.lowerdir, 'from-lower') }),
    code: 'ENOTDIR',
    reason: 'upper-not-directory',
    path: 'lower/from-lower',
  },
  'a workdir that is missing': {
    change: (_, dir) => ({ workdir: join(dir, 'none') }),
    code: 'ENOENT',
    reason: 'work-missing',
    path: 'none',
  },
  'a workdir that is a file': {
    change: (options) => ({ workdir: join(options.lowerdir, 'from-lower') }),
    code: 'ENOTDIR',
    reason: 'work-not-directory',
    path: 'lower/from-lower',
  },
  'a workdir inside the upperdir': {
    change: (options) => {
      mkdirSync(join(options.upperdir, 'deep/work'), { recursive: true });
      return { workdir: join(options.upperdir, 'deep/work') };
    },
    code: 'EINVAL',
    reason: 'work-inside-upper',
    path: 'upper/deep/work',
  },
  'an upperdir inside the workdir': {
    change: (options) => {
      mkdirSync(join(options.workdir, 'upper'));
      return { upperdir: join(options.workdir, 'upper') };
    },
    code: 'EINVAL',
    reason: 'work-inside-upper',
    path: 'work',
  },
  'one directory as upperdir and workdir': {
    change: (options) => ({ workdir: `${options.upperdir}/.` }),
    code: 'EINVAL',
    reason: 'work-inside-upper',
    path: 'upper/.',
  },
  'a workdir inside the upperdir, where both were to be created': {
    change: (_, dir) => ({
      upperdir: join(dir, 'new/upper'),
      workdir: join(dir, 'new/upper/deep/../work'),
      create: true,
    }),
    code: 'EINVAL',
    reason: 'work-inside-upper',
    path: 'new/upper/deep/../work',
  },
  'a workdir to be created inside an upperdir that is there': {
    change: (options) => ({ workdir: join(options.upperdir, 'deep/work'), create: true }),
    code: 'EINVAL',
    reason: 'work-inside-upper',
    path: 'upper/deep/work',
  },
  'an upperdir to be created inside the workdir': {
    change: (options) => ({ upperdir: join(options.workdir, 'upper'), create: true }),
    code: 'EINVAL',
    reason: 'work-inside-upper',
    path: 'work',
  },
  'one directory to be created as upperdir and workdir': {
    change: (_, dir) => ({ upperdir: join(dir, 'new'), workdir: `${join(dir, 'new')}/.`, create: true }),
    code: 'EINVAL',
    reason: 'work-inside-upper',
    path: 'new/.',
  },
  'upperdir and workdir to be created on two file systems': {
    change: (_, dir) => {
      mkdirSync(join(dir, 'other'));
      native.mount('other', join(dir, 'other'), 'tmpfs', 0, '');
      return { upperdir: join(dir, 'new/upper'), workdir: join(dir, 'other/new/work'), create: true };
    },
    code: 'EINVAL',
    reason: 'work-on-other-mount',
    path: 'other/new/work',
  },
  'an upperdir to be created in a file system that can hold none': {
    change: (options, dir) => {
      mountOverlaySync(options);
      mkdirSync(join(dir, 'other'));
      return {
        upperdir: join(options.target, 'new/upper'),
        workdir: join(options.target, 'new/work'),
        target: join(dir, 'other'),
        create: true,
      };
    },
    code: 'EINVAL',
    reason: 'upper-unsupported',
    path: 'merged/new/upper',
  },
  'a workdir inside the upperdir by way of a link': {
    change: (options, dir) => {
      mkdirSync(join(options.upperdir, 'w'));
      symlinkSync(join(options.upperdir, 'w'), join(dir, 'link'));
      return { workdir: join(dir, 'link') };
    },
    code: 'EINVAL',
    reason: 'work-inside-upper',
    path: 'link',
  },
  'upperdir and workdir on two file systems': {
    change: (_, dir) => {
      native.mount('other', join(dir, 'work'), 'tmpfs', 0, '');
      return {};
    },
    code: 'EINVAL',
    reason: 'work-on-other-mount',
    path: 'work',
  },
  'upperdir and workdir on two mounts of one file system': {
    change: (options) => {
      native.mount(options.workdir, options.workdir, '', 4096, '');
      return {};
    },
    code: 'EINVAL',
    reason: 'work-on-other-mount',
    path: 'work',
  },
  'an upperdir on a read-only mount': {
    change: (_, dir) => {
      native.mount(join(dir), join(dir, 'merged'), '', 4096, '');
      native.mount('', join(dir, 'merged'), '', 4096 | 32 | 1, '');
      mkdirSync(join(dir, 'other'));
      return { upperdir: join(dir, 'merged/upper'), workdir: join(dir, 'merged/work'), target: join(dir, 'other') };
    },
    code: READ_ONLY,
    reason: 'upper-read-only',
    path: 'merged/upper',
  },
  'an upperdir on an overlay': {
    change: (options, dir) => {
      mountOverlaySync(options);
      for (const name of ['u', 'w']) mkdirSync(join(options.target, name));
      mkdirSync(join(dir, 'other'));
      return { upperdir: join(options.target, 'u'), workdir: join(options.target, 'w'), target: join(dir, 'other') };
    },
    code: 'EINVAL',
    reason: 'upper-unsupported',
    path: 'merged/u',
  },
  'one lowerdir twice': {
    change: (options) => ({ lowerdir: [options.lowerdir, options.lowerdir] }),
    code: 'ELOOP',
    reason: 'layer-twice',
    path: 'lower',
  },
  'an upperdir in use, with index': {
    change: (options, dir) => {
      mountOverlaySync(options);
      mkdirSync(join(dir, 'other'));
      return { index: true, target: join(dir, 'other') };
    },
    code: 'EBUSY',
    reason: 'upper-in-use',
    path: 'upper',
  },
  'a target that is missing': {
    change: (_, dir) => ({ target: join(dir, 'none') }),
    code: 'ENOENT',
    reason: 'target-missing',
    path: 'none',
  },
  'a target that is a file': {
    change: (options) => ({ target: join(options.lowerdir, 'from-lower') }),
    code: 'ENOTDIR',
    reason: 'target-not-directory',
    path: 'lower/from-lower',
  },
  'a target that is a link': {
    change: (options, dir) => {
      symlinkSync(options.target, join(dir, 'link'));
      return { target: join(dir, 'link') };
    },
    code: 'ENOTDIR',
    reason: 'target-symlink',
    path: 'link',
  },
  'a target that is a mount point': {
    change: (options) => {
      native.mount('other', options.target, 'tmpfs', 0, '');
      return {};
    },
    code: 'EBUSY',
    reason: 'target-mounted',
    path: 'merged',
  },
};

for (const [title, { change, code, reason, path }] of Object.entries(wrongPaths)) {
  mountTest(`refused, and nothing is mounted: ${title}`, async (t) => {
    const dir = scratch(t);
    const good = layers(dir);
    const options = { ...good, ...change(good, dir) } as OverlayOptions;
    const before = mountsBelow(dir).length;
    const descriptors = countDescriptors();
    for (const mount of [mountOverlaySync, mountOverlay]) {
      const error = await t.throwsAsync(async () => mount(options), { name: 'OverlayError', code });
      t.like(error, { reason, path: join(dir, path.replace(/\/\.$/, '')) + (path.endsWith('/.') ? '/.' : '') });
      t.true(
        error?.message.includes((error as { path?: string }).path ?? '?') || reason === 'layers-overlap',
        error?.message,
      );
      t.regex(
        error?.message ?? '',
        /^E[A-Z0-9]+: .+\. [A-Z].+\.$/,
        'a sentence that says what, and one that says what to do',
      );
      t.is(mountsBelow(dir).length, before);
    }
    t.is(countDescriptors(), descriptors);
  });
}

mountTest('1,000 failures leave no descriptor open', async (t) => {
  const dir = scratch(t);
  const good = layers(dir);
  writeFileSync(join(dir, 'file'), '');
  chmodSync(join(dir, 'file'), 0o600);
  const bad: Given[] = [
    { lowerdir: join(dir, 'none') },
    { lowerdir: join(dir, 'file') },
    { upperdir: join(dir, 'none') },
    { workdir: join(dir, 'upper') },
    { workdir: '/dev/shm' },
    { target: join(dir, 'none') },
    { target: join(dir, 'file') },
    { target: '/proc' },
    { lowerdir: [good.lowerdir, good.lowerdir] },
    { upperdir: join(dir, 'file') },
  ];
  const descriptors = countDescriptors();
  for (let i = 0; i < scaled(500, bad.length); i++) {
    const options = { ...good, ...bad[i % bad.length] } as OverlayOptions;
    t.throws(() => mountOverlaySync(options), { name: 'OverlayError' });
    await t.throwsAsync(() => mountOverlay(options), { name: 'OverlayError' });
  }
  t.is(countDescriptors(), descriptors);
  t.is(mountsBelow(dir).length, 1);
});
