/**
 * Random options: mount.overlay against the kernel's own verdict. Imports internals: a process for each of hundreds of
 * sets would take minutes.
 */
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { mountHelper } from '#lib/mount-helper/run.js';
import { splitShown } from '#lib/mount-strings.js';
import { readMountinfo } from '#lib/mount-table/mountinfo.js';
import { type NamedOptions, readShown } from '#lib/options/text.js';
import { freshen, makeDirectories } from '../overlay/random/directories.js';
import { type Generated, generate } from '../overlay/random/generator.js';
import { textOf } from '../overlay/random/kernel.js';
import { generator, MNT_DETACH, mountTest, native, scaled } from '../support/index.js';

const seed = 20261125;
const sets = scaled(600, 60);

interface Made {
  readonly code: number;
  /** The mount table then shows this, without the layers, which it may show in other words. */
  readonly shown?: Omit<NamedOptions, 'lowerdir' | 'datadir' | 'upperdir' | 'workdir'>;
}

function take(target: string, code: number): Made {
  if (code !== 0) return { code };
  const entry = readMountinfo().findLast((candidate) => candidate.target.toString() === target);
  const { lowerdir, datadir, upperdir, workdir, ...shown } = readShown(
    splitShown(entry?.superOptions ?? Buffer.alloc(0)),
  ).options;
  native.umount(target, MNT_DETACH);
  return { code, shown };
}

/** In this process: the program itself takes longer to start than all that it does. */
function help(target: string, text: string, more = ''): Made & { said: string } {
  let said = '';
  const code = mountHelper(['src', target, '-o', text + more], (_, chunk) => {
    said += chunk;
  });
  return { ...take(target, code), said };
}

/** The library sends the word that goes with userxattr; "off" may be another to the kernel. */
const isBetter = ({ userxattr, redirectDir }: Generated['options']): boolean =>
  userxattr === true && redirectDir === 'off';

// Before 6.15 the library helps out more: it sends what options stand on.
mountTest(
  `mount.overlay: ${sets} random sets of options end as they do without it`,
  { needs: 'override_creds' },
  (t) => {
    t.timeout(600_000);
    t.log(`seed ${seed}`);
    const random = generator(seed);
    const dir = makeDirectories(t);
    const target = join(dir, 'm');
    const tally = new Map<string, number>();
    const amiss: string[] = [];
    const count = (what: string) => tally.set(what, (tally.get(what) ?? 0) + 1);
    for (let i = 0; i < sets; i++) {
      const { options, wrongText } = generate(random);
      // A word of mount(8), none of the kernel's.
      if (wrongText === 'noatime') continue;
      const text = textOf(options, wrongText, dir);
      freshen(dir);
      const kernel = take(target, native.mount('src', target, 'overlay', 0, text));
      freshen(dir);
      const helped = help(target, text);
      freshen(dir);
      const strict = help(target, text, ',x-overlayfs.strict');
      const about = `${text.replaceAll(dir, '')}\n  ${kernel.code} ${JSON.stringify([kernel.shown, helped.shown])}\n${helped.said}${strict.said}`;
      const isWarned = helped.said.includes('warning');

      count(
        `kernel ${kernel.code === 0 ? 'mounts' : 'refuses'}, helper ${helped.code}${isWarned ? ', warns' : ''}, strict ${strict.code}`,
      );
      const check = (what: string, isRight: boolean) => {
        if (!isRight) amiss.push(`${what}: ${about}`);
      };
      if (kernel.code !== 0 && helped.code === 0 && isBetter(options)) {
        count('better than the kernel');
      } else if (kernel.code === 0) {
        check('the kernel mounts', helped.code === 0);
        check('shown otherwise', isDeepStrictEqual(helped.shown, kernel.shown));
        check('strict', strict.code === (isWarned ? 32 : 0));
        check('what would be', !/ would /.test(helped.said));
      } else {
        check('the kernel refuses', helped.code === 32 && strict.code === 32);
        check('no reason', /^mount\.overlay: (?!warning).+\n {2}(reason|hint): /m.test(helped.said));
        check('words', !/undefined|`| --\w|unexplained/.test(helped.said));
      }
    }
    for (const [what, number] of [...tally].sort()) t.log(`${number} × ${what}`);
    t.is(amiss.length, 0, `${amiss.length}\n${amiss.slice(0, 10).join('\n')}`);
  },
);
