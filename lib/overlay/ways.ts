/** The ways to mount, by name, each with the kernel features for which the library chooses it. */
import type { KernelFeatures } from '../features/record.js';

export interface Way {
  readonly about: string;
  readonly features: Partial<KernelFeatures>;
}

const context = { fsContext: true, lowerdirAppend: true } as const;
// Without lowerdirAppend; otherwise a short plain path would be passed as a string.
const descriptors = { ...context, lowerdirAppend: false } as const;
const wrapper = { fsContext: false, lowerdirAppend: false, layerDescriptors: false } as const;
const mount2 = { ...wrapper, mountApi: false } as const;

export const ways = {
  descriptors: {
    about: 'each layer by its file descriptor: Linux 6.15, and late 6.13 and 6.14, except for short plain paths',
    features: { ...descriptors, layerDescriptors: 'path' },
  },
  readable: {
    about: 'each layer by a file descriptor that is open for reading: early 6.13 and 6.14, likewise',
    features: { ...descriptors, layerDescriptors: 'readable' },
  },
  strings: {
    about:
      'the lower layers in one string of up to 255 bytes, or each in a string of its own: Linux 6.7, and late 6.6; a long path goes through /proc/self/fd',
    features: { ...context, layerDescriptors: false },
  },
  string: {
    about: 'all lower layers in one string: Linux 6.5, and early 6.6, up to 255 bytes',
    features: { ...context, layerDescriptors: false, lowerdirAppend: false },
  },
  wrapper: {
    about: 'the same through the compatibility code of Linux 5.2 to 6.4, which accepts no comma and at most a page',
    features: wrapper,
  },
  mount: { about: 'all options in one string, by mount(2): if no way above works', features: mount2 },
  numbers: {
    about: 'the same with the lower layers as numbers of file descriptors: if the paths are longer than a page',
    features: mount2,
  },
} as const satisfies Readonly<Record<string, Way>>;

export type WayName = keyof typeof ways;

export const wayNames = Object.keys(ways) as WayName[];
