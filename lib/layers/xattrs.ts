/** The extended attributes in which overlayfs keeps what a layer says, by namespace. */

const prefix = (userxattr: boolean): string => (userxattr ? 'user.overlay.' : 'trusted.overlay.');

/** On a directory: `y` hides what is below it. */
export const opaqueName = (userxattr: boolean): string => `${prefix(userxattr)}opaque`;

/** On an empty file: it is a whiteout (6.7). */
export const whiteoutName = (userxattr: boolean): string => `${prefix(userxattr)}whiteout`;
