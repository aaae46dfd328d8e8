/** The same where ustat(2) is missing, as on arm64 and under some seccomp filters: watches tell of overlays that end. */
import { constants } from 'node:os';
import { mountTest, native } from '../support/index.js';
import { runModel } from './in-use-model.js';

/** Its number on x86-64, the one architecture here that has it. */
const USTAT = 136;

mountTest('without ustat(2) the library refuses the same', { needs: 'uniqueMountId' }, async (t) => {
  if (process.arch === 'x64') t.is(native.denyCalls([USTAT], constants.errno.ENOSYS), 0);
  await runModel(t);
});
