/**
 * Hard links in an overlay with `index`. The kernel copies a file with several names up once, and shows the copy under all
 * of them. The upper has only the names that were used. The index in the workdir has a link to each copy, whose name is
 * the handle of the file below (struct ovl_fb in fs/overlayfs/overlayfs.h).
 */
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { Plan } from '../kernel/plan.js';
import { askTolerant, type Task } from '../kernel/task.js';
import { toBytePath } from './encodings.js';
import { isWhiteoutDevice } from './marks.js';
import { MergedWalker } from './merged.js';
import { type LayerStack, type Source, toSource } from './stack.js';
import { Walker } from './walk.js';

/** `struct ovl_fb`: version, magic, length, flags, the type of the handle, the id of its file system, the handle. */
export const ORIGIN = { magicAt: 1, magic: 0xfb, typeAt: 4, handleAt: 21 } as const;
export const HANDLE_ROOM = 136;

const keyOf = (type: number, handle: Buffer): string => `${type} ${handle.toString('hex')}`;

export class IndexedFiles {
  readonly #stack: LayerStack;
  readonly #copies = new Map<string, Source>();

  constructor(stack: LayerStack) {
    this.#stack = stack;
  }

  get isEmpty(): boolean {
    return this.#copies.size === 0;
  }

  /** Reads the index if the layers have one. */
  *read(): Task<void> {
    const { index, indexLayer, space } = this.#stack;
    if (index === undefined) return;
    const walker = new Walker('', { at: index.root, atPath: index.path, attributes: 'all', targets: true });
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          if (walker.error !== 0) throw walker.failure();
          // With nfs_export, the index also has directories, and whiteouts of removed files.
          if (walker.type === k.S_IFDIR || isWhiteoutDevice(walker)) continue;
          const name = Buffer.from(walker.name, 'hex');
          if (name[ORIGIN.magicAt] !== ORIGIN.magic) continue;
          const key = keyOf(name[ORIGIN.typeAt] as number, name.subarray(ORIGIN.handleAt));
          this.#copies.set(key, toSource(walker, indexLayer, walker.path, space));
        }
      }
    } finally {
      walker.close();
    }
  }

  /** Calls `use` at each name at which the overlay shows a copy that the upper does not have there. */
  *visit(use: (merged: MergedWalker, copy: Source) => Task<void>): Task<void> {
    if (this.isEmpty) return;
    const merged = new MergedWalker(this.#stack, this.#stack.roots(0), { attributes: 'all', targets: true });
    try {
      while (yield* merged.next()) {
        const { entry, layer, layerPath } = merged;
        if (entry.error !== 0) throw entry.failure();
        if (entry.type === k.S_IFDIR) continue;
        const copy = yield* this.copyOf(layer, layerPath, entry.links);
        if (copy !== undefined) yield* use(merged, copy);
      }
    } finally {
      merged.close();
    }
  }

  /** Returns the copy that the overlay shows in the place of an entry of a layer below the upper. */
  *copyOf(layer: number, path: string, links: number): Task<Source | undefined> {
    if (this.isEmpty || layer === 0 || links === 1) return undefined;
    const plan = new Plan();
    const args = [this.#stack.at(layer).root, toBytePath(path), 0] as const;
    const step = plan.stepOf(plan.add(calls.name_to_handle_at, args, { output: HANDLE_ROOM, tolerate: 'any' }));
    const outputs = yield* askTolerant(plan);
    if (outputs.result(step) < 0) return undefined;
    const handle = outputs.bytes(step, 16 + outputs.number(step, 1)).subarray(16);
    return this.#copies.get(keyOf(outputs.number(step, 0), handle));
  }
}
