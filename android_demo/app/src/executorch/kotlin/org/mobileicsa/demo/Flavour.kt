package org.mobileicsa.demo

object Flavour {
    const val IS_EXECUTORCH = true
}
