/**
 * A plan: a list of kernel calls in order, decided before the first call is made. Building a plan changes nothing. It
 * can be printed (format.ts) and performed in one native call (perform.ts).
 */
import type { Path } from '../paths.js';
import type { Call, CallOf, Descriptor, Text } from './calls.js';
import type { GuardName } from './guard-names.js';

/** The subject of a step, used to explain its failure. */
export interface Subject {
  readonly role: 'lowerdir' | 'datadir' | 'upperdir' | 'workdir' | 'source' | 'target' | 'path' | 'namespace';
  /** The position among several of the same role, from 0. */
  readonly index?: number;
  readonly path: Path;
}

export type { Descriptor, Text };

export interface StepOptions {
  /** Undo the step when a later step fails or the caller aborts. */
  readonly undo?: boolean;
  /** The caller owns the file descriptor that this step makes. */
  readonly keep?: boolean;
  /** Performed only when the plan is undone. */
  readonly later?: boolean;
  /** Errnos with which the step counts as done, at most four; or any. */
  readonly tolerate?: readonly number[] | 'any';
  /** Report the result, and this many bytes of what the call returned. */
  readonly output?: number;
  readonly subject?: Subject;
  /** The guard that this step is. Its failure reports the name. */
  readonly guard?: GuardName;
}

export interface Step {
  readonly call: Call;
  readonly args: readonly (Text | number)[];
  readonly options: StepOptions;
  /** The offset of the step's output among the plan's outputs; -1 when it has none. */
  readonly outputAt: number;
}

/**
 * Marks a file descriptor argument as the result of a step: the other bits are the step's index, as in native/plan.h.
 */
export const MADE_BY = 0x40000000;

/** The size of the step's result, which each output begins with. */
export const RESULT_SIZE = 8;

const noOptions: StepOptions = {};

export class Plan {
  readonly #steps: Step[] = [];

  get steps(): readonly Step[] {
    return this.#steps;
  }

  outputsSize = 0;
  /** Perform the plan on a thread of its own, because its steps change the working directory. */
  isOnOwnThread = false;
  /**
   * Memory that the plan reads or fills without a copy. It must not move or be freed until the plan is done, so it is
   * never a caller's own buffer.
   */
  lent: readonly Uint8Array[] | undefined;
  /**
   * Perform the plan in a child process of its own, because its steps change namespaces. The child shares memory and
   * file descriptors with this process. Its mounts end with the child, except those on a kept file descriptor.
   */
  isInChild = false;

  /** Adds a step. Returns the number that stands for the file descriptor that the step makes. */
  add<Args extends readonly unknown[]>(
    call: CallOf<Args>,
    args: Readonly<NoInfer<Args>>,
    options: StepOptions = noOptions,
  ): Descriptor {
    let outputAt = -1;
    if (options.output !== undefined) {
      outputAt = this.outputsSize;
      this.outputsSize += RESULT_SIZE + ((options.output + 7) & ~7);
    }
    this.#steps.push({ call, args: args as readonly (Text | number)[], options, outputAt });
    return MADE_BY | (this.#steps.length - 1);
  }

  /**
   * Returns the number for the file descriptor of a step that is added later; `following(0)` is that of the next step.
   */
  following(steps: number): Descriptor {
    return MADE_BY | (this.#steps.length + steps);
  }

  /** Returns the step that makes this file descriptor. */
  stepOf(descriptor: Descriptor): Step {
    return this.steps[descriptor ^ MADE_BY] as Step;
  }
}
