/** The extended attributes in which overlayfs keeps a layer's marks, by namespace. */

const prefix = (userxattr: boolean): string => (userxattr ? 'user.overlay.' : 'trusted.overlay.');

/** On a directory: `y` hides the contents below it. */
export const opaqueName = (userxattr: boolean): string => `${prefix(userxattr)}opaque`;

/** Marks an empty file as a whiteout (6.7). */
export const whiteoutName = (userxattr: boolean): string => `${prefix(userxattr)}whiteout`;
