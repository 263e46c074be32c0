package org.mobileicsa.demo

/** Versions of gradle/libs.versions.toml, named in results; `make check-android` compares them. */
object BuildVersions {
    const val EXECUTORCH = "1.5.1"
    const val ONNXRUNTIME = "1.29.0"
}
