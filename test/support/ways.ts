/** The ways down by which an overlay can be mounted, each as a record of features that leads to it. */

import { mountOverlay, mountOverlaySync, type OverlayOptions } from 'overlayfs';
import { type KernelFeatures, kernelFeatures } from '#lib/overlay/features.js';
import { mountOverlayWith, mountOverlayWithSync, type OverlayMount } from '#lib/overlay/mount.js';

export interface Way {
  readonly mount: (options: OverlayOptions) => Promise<OverlayMount>;
  readonly mountSync: (options: OverlayOptions) => OverlayMount;
  /** Does it take any number of layers of any path? */
  readonly isUnbounded: boolean;
}

function lacking(what: Partial<KernelFeatures>, isUnbounded: boolean): Way {
  return {
    mount: (options) => mountOverlayWith(options, { ...kernelFeatures(), ...what }),
    mountSync: (options) => mountOverlayWithSync(options, { ...kernelFeatures(), ...what }),
    isUnbounded,
  };
}

export const ways: Readonly<Record<string, Way>> = {
  'as it comes': { mount: mountOverlay, mountSync: mountOverlaySync, isUnbounded: true },
  'by descriptors': lacking({}, true),
  'by readable descriptors': lacking({ layerDescriptors: 'readable' }, true),
  'by strings': lacking({ layerDescriptors: false }, true),
  'by mount(2)': lacking({ fsContext: false }, false),
};
