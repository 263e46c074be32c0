plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "org.mobileicsa.demo"
    compileSdk = 36

    defaultConfig {
        applicationId = "org.mobileicsa.demo"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
    }

    flavorDimensions += "runtime"
    productFlavors {
        create("executorch") {
            dimension = "runtime"
            applicationIdSuffix = ".executorch"
            resValue("string", "app_name", "mobileicsa ExecuTorch")
        }
        create("onnxruntime") {
            dimension = "runtime"
            applicationIdSuffix = ".onnxruntime"
            resValue("string", "app_name", "mobileicsa ONNX Runtime")
        }
    }

    buildTypes {
        release {
            // A demo that anybody builds: signed with the debug key, so that `adb install` takes it.
            signingConfig = signingConfigs.getByName("debug")
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation(project(":core"))
    "executorchImplementation"(libs.executorch.android)
    "onnxruntimeImplementation"(libs.onnxruntime.android)
}
