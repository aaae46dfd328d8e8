/** The rights with which this process works on the entries of others. */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import { toBytePath } from '../trees/encodings.js';
import type { Records } from '../trees/records.js';
import type { Root } from '../trees/root.js';

/** capabilities(7): CAP_CHOWN, CAP_DAC_OVERRIDE and CAP_FOWNER, with which the owner of an entry does not matter. */
const OWNERS_RIGHTS = 0b1011n;

/** Questions that one plan asks. */
const AT_ONCE = 256;

interface Question {
  readonly root: Root;
  readonly path: string;
  /** W_OK, X_OK */
  readonly rights: number;
  /** Called with EACCES, EROFS or EPERM. */
  readonly onDenial: (errno: number) => void;
}

export class Actor {
  readonly uid: number = process.geteuid?.() ?? 0;
  /** It may treat the entries of all users as its own. */
  readonly isPrivileged: boolean = isPrivileged(this.uid);
  readonly #groups = new Set([process.getegid?.() ?? 0, ...(process.getgroups?.() ?? [])]);
  #questions: Question[] = [];

  isIn(gid: number): boolean {
    return this.#groups.has(gid);
  }

  /** True for an entry of another user whose owner matters. */
  isForeign({ uid }: Records): boolean {
    return uid !== this.uid && !this.isPrivileged;
  }

  /** Asks the kernel later whether this process has these rights: a mode alone does not tell, for there may be a list. */
  askLater(question: Question): void {
    this.#questions.push(question);
  }

  *askAll(): Task<void> {
    const questions = this.#questions;
    this.#questions = [];
    for (let first = 0; first < questions.length; first += AT_ONCE) {
      const some = questions.slice(first, first + AT_ONCE);
      const plan = new Plan();
      const steps = some.map(({ root, path, rights }) => {
        const args = [root.descriptor, path === '' ? '.' : toBytePath(path), rights, k.AT_EACCESS] as const;
        return plan.stepOf(plan.add(calls.faccessat2, args, { output: 0, tolerate: 'any' }));
      });
      const outcome = yield* ask(plan);
      if (outcome instanceof StepFailure) return;
      for (const [i, step] of steps.entries()) {
        const errno = -outcome.result(step);
        // Other errors, such as ENOSYS before Linux 5.8, are no answer.
        if (errno === e.EACCES || errno === e.EROFS || errno === e.EPERM) some[i]?.onDenial(errno);
      }
    }
  }
}

function isPrivileged(uid: number): boolean {
  try {
    const status = process.getBuiltinModule('node:fs').readFileSync('/proc/self/status', 'latin1');
    const effective = BigInt(`0x${/^CapEff:\s*(\w+)$/m.exec(status)?.[1] ?? 'none'}`);
    return (effective & OWNERS_RIGHTS) === OWNERS_RIGHTS;
  } catch {
    return uid === 0;
  }
}
